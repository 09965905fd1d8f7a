"""A process that measures: `python -m benchmarks.gpu.worker`, which `Worker` starts and speaks to.

It reads a JSON line for each measurement, and answers with one. Anything else that is printed goes to stderr. After a
fault the device may be in any state, so that the process ends, and the next measurement has a new one.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import subprocess
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetune import cli

from .results import Outcome, Skipped

PARTS = ("cost", "largest", "kernels")


class Worker:
    """The process as who asks it sees it; started when there is something to ask, and again after a crash."""

    def __init__(self, tiny: bool) -> None:
        self._tiny = tiny
        self._process: subprocess.Popen[str] | None = None

    def machine(self) -> dict[str, Any]:
        """The hardware and the packages."""
        return self.ask("machine", "", 600) or {}

    def ask(self, part: str, key: str, seconds: float) -> Outcome | None:
        """Measure `key` of `part`; None if that takes longer than so many `seconds`."""
        process = self._running()
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps({"part": part, "key": key, "tiny": self._tiny}) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], max(0, seconds))[0]:
            self.close()
            return None
        line = process.stdout.readline()
        if not line:  # killed, for memory as a rule
            status = process.wait()
            self.close()
            return {"failed": f"the process ended with status {status}"}
        outcome: Outcome = json.loads(line)
        if {"failed", "out_of_memory"} & outcome.keys():
            self.close()
        return outcome

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [sys.executable, "-m", __name__]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self._process


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        outcome = _measured(**json.loads(line))
        print(json.dumps(outcome), file=answers, flush=True)


def _measured(part: str, key: str, tiny: bool) -> Outcome:
    from finetune.device import is_out_of_memory

    try:
        _forget()
        if part == "machine":
            return _machine(tiny)
        outcome: Outcome = importlib.import_module(f".{part}", __package__).measure(key, tiny)
        return outcome
    except Skipped as error:
        return {"skipped": str(error)}
    except ModuleNotFoundError as error:
        return {"skipped": f"{str(error.name).split('.')[0]} is not installed"}
    except Exception as error:
        if is_out_of_memory(error):
            return {"out_of_memory": True}
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _forget() -> None:
    """Let the next measurement's peaks be its own."""
    import torch

    from finetune.kernels import loss

    loss._memory.cache_clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident set


def _machine(tiny: bool) -> dict[str, Any]:
    import torch

    from finetune import device
    from finetune.training import run  # noqa: F401  (before any measurement: a CPU's memory holds what is imported as well)

    if find_spec("bitsandbytes"):
        import bitsandbytes  # noqa: F401

    found = {"hardware": device.describe(), "versions": device.versions(), "tiny": tiny}
    if torch.cuda.is_available():
        facts = torch.cuda.get_device_properties()
        found["capability"] = f"{facts.major}.{facts.minor}"
        found["memory_gb"] = round(facts.total_memory / 1e9, 1)
    return found


if __name__ == "__main__":
    cli.run(main)
