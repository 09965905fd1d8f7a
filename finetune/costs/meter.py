"""Time, tokens and memory of a run. Memory is in GB of 10^9 bytes, time in seconds."""

import csv
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from finetune.costs import energy
from finetune.distributed.group import Group
from finetune.files import whole_file

GB = 1e9

Record = dict[str, Any]
"""JSON form of what a meter has seen: seconds, samples, peak_device_gb, peak_process_gb, joules."""

_NOTHING: Record = {"seconds": 0.0, "samples": [], "peak_device_gb": 0.0, "peak_process_gb": 0.0, "joules": 0.0}


def peak_process_gb() -> float:
    """The most memory that this process has held (resident set)."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss also counts what the process was before exec
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / GB
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / GB
    else:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB


class Meter:
    """Samples memory in the background between `start` and `stop`, on top of what was seen before an interruption.

    Device memory is what torch's allocator holds on CUDA. On a CPU the device is the host: process
    memory above what the process held at `start`, when nothing but the imports had happened.
    """

    INTERVAL = 0.25

    def __init__(self) -> None:
        self._samples: list[tuple[float, float, float]] = []
        self._before = _NOTHING
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._process = psutil.Process()

    def start(self) -> "Meter":
        """Begin to sample, and take what the process holds now as the floor of device memory on a CPU."""
        self._started = time.perf_counter()
        self._floor_gb = self.process_gb()
        self._joules_at_start = energy.joules()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the sampling, and read the energy counter."""
        self._done.set()
        self._thread.join()
        self._joules_at_stop = energy.joules()

    def record(self) -> Record:
        """What was seen up to now, for the meter of a process that resumes the run."""
        return {
            "seconds": self._before["seconds"] + self.seconds(),
            "samples": self._all_samples(),
            "peak_device_gb": self.peak_device_gb(),
            "peak_process_gb": self.peak_process_gb(),
            "joules": self._joules(),
        }

    def resume(self, record: Record) -> None:
        """Add what another process has seen of this run."""
        self._before = record

    def energy(self, group: Group = Group()) -> dict[str, float]:  # noqa: B008  # frozen
        """energy_kj, drawn by the CUDA devices of `group` since `start`; nothing where that isn't known."""
        joules = [one for one in group.gathered(self._joules()) if one is not None]
        return {"energy_kj": round(sum(joules) / 1000, 3)} if len(joules) == group.size else {}

    def seconds(self) -> float:
        """Since `start`."""
        return time.perf_counter() - self._started

    def process_gb(self) -> float:
        """What the process holds now (resident set)."""
        return self._process.memory_info().rss / GB

    def device_gb(self) -> float:
        """What is held on the device now."""
        if torch.cuda.is_available():
            return torch.cuda.memory_allocated() / GB
        return max(0.0, self.process_gb() - self._floor_gb)

    def peak_device_gb(self) -> float:
        """The most that the device has held; on CUDA since `start`."""
        cuda = torch.cuda.is_available()
        own = torch.cuda.max_memory_allocated() / GB if cuda else peak_process_gb() - self._floor_gb
        return max(own, self._before["peak_device_gb"])

    def peak_process_gb(self) -> float:
        """The most that the process has held (resident set)."""
        return max(peak_process_gb(), self._before["peak_process_gb"])

    def save(self, path: Path) -> None:
        """Write the samples as a table: seconds, process_gb, device_gb."""
        with whole_file(path) as draft, draft.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(["seconds", "process_gb", "device_gb"])
            writer.writerows([[f"{value:.3f}" for value in sample] for sample in self._all_samples()])

    def _joules(self) -> float | None:
        now = self._joules_at_stop if self._done.is_set() else energy.joules()
        before = self._before["joules"]
        return None if None in (now, before, self._joules_at_start) else before + now - self._joules_at_start

    def _all_samples(self) -> list[tuple[float, float, float]]:
        offset = self._before["seconds"]
        own = [(offset + seconds, process, device) for seconds, process, device in self._samples]
        return [*map(tuple, self._before["samples"]), *own]

    def _sample(self) -> None:
        while not self._done.wait(self.INTERVAL):
            self._samples.append((self.seconds(), self.process_gb(), self.device_gb()))
