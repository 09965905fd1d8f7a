"""A command of a trial: shown as it runs, its reason kept if it fails, never left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

_MARKS = ("error: ", "ERROR: ", "fatal: ", "")
"""How the line begins that says why: ours before DVC's before Git's before any."""


class CommandFailed(Exception):
    """A command ended with another status than 0. The message is the line of its output that says why."""


def run(*arguments: str, cwd: Path, keep_open: Sequence[int] = ()) -> None:
    """Run a command in `cwd`, its output on stdout. Raises CommandFailed if it fails.

    If this process is asked to end meanwhile, so are the command and all that it has started, and they are waited for:
    training makes a snapshot then. They hold the file handles `keep_open` as long as they live, whatever becomes of this
    process.
    """
    process = subprocess.Popen(
        arguments,
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        pass_fds=tuple(keep_open),
    )
    assert process.stdout is not None
    said: dict[str, str] = {}
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            said |= {mark: line.strip() for mark in _MARKS if line.strip() and line.startswith(mark)}
        status = process.wait()
    except BaseException:
        _end(process)
        raise
    if status:
        raise CommandFailed(next(_first(said), f"{arguments[-1]} ended with status {status}, without a word"))


def environment() -> dict[str, str]:
    """Variables for a command: this Python, with its dvc, comes first on the PATH, and Git asks nobody for a password."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return os.environ | {"PATH": path, "GIT_TERMINAL_PROMPT": "0"}


def _first(said: dict[str, str]) -> Iterator[str]:
    return (said[mark].removeprefix(mark) for mark in _MARKS if mark in said)


def _end(process: subprocess.Popen) -> None:
    """Ask the process and all that it has started to end, and wait for them."""
    if not hasattr(os, "killpg"):
        process.terminate()
        process.wait()
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        while True:  # DVC ends at once, the stage after its snapshot
            os.killpg(process.pid, 0)
            time.sleep(0.1)
