"""The part `tests`: those of marker `cuda`, each one's outcome noted as it ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

from .results import Budget, Outcome, Results

WHOLE, TINY = ["-m", "cuda", "tests/cuda"], ["-m", "not cuda", "-k", "random_numbers", "tests/cuda/test_run.py"]
ENDED = re.compile(r"(tests/\S+?::.+?) (PASSED|FAILED|ERROR|SKIPPED)(?: \((.*)\))?\s*")


def run(results: Results, budget: Budget, tiny: bool) -> bool:
    """Run those that haven't passed yet; whether time was enough. With `tiny`, one in its form for a CPU."""
    command = [sys.executable, "-m", "pytest", "--verbose", "--tb=short", "-p", "no:cacheprovider"]
    command += ["-o", "console_output_style=classic", "-o", "addopts=--import-mode=importlib"]
    command += [*(TINY if tiny else WHOLE), *(f"--deselect={key}" for key in results.done)]
    wide = os.environ | {"COLUMNS": "300"}  # or reasons are cut short
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=wide)
    alarm = threading.Timer(max(0, budget.left()), process.kill)
    alarm.start()
    assert process.stdout
    for line in process.stdout:
        print(line, end="", flush=True)
        ended = ENDED.fullmatch(line)
        if ended:
            results.put(ended[1], _outcome(ended[2], ended[3] or ""))
    alarm.cancel()
    # 5: none was left.
    if process.wait() not in (0, 1, 5) and budget.left() > 0:
        results.put("pytest", {"failed": f"ended with status {process.returncode}, without all tests run"})
    return budget.left() > 0


def _outcome(word: str, reason: str) -> Outcome:
    if word == "PASSED":
        return {"passed": True}
    return {"skipped": reason} if word == "SKIPPED" else {"failed": reason or word.lower()}
