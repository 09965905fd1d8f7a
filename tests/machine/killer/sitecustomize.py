"""Python imports this by itself from PYTHONPATH. It numbers what a program changes below the folder KILL_BELOW, appends
each change to KILL_LOG, and ends the process as `kill -9` does at the change KILL_AT: before it, or, if KILL_AT is
negative, right after the file was opened and emptied."""

import os
import signal
import sys

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

below = os.environ.get("KILL_BELOW", "")
at = int(os.environ.get("KILL_AT", "0"))
log = os.environ.get("KILL_LOG", "")
number = 0
busy = False


def path_of(event: str, arguments: tuple) -> str | None:
    if event == "open":
        path, _, flags = arguments
        return os.fspath(path) if isinstance(path, str | os.PathLike) and flags & WRITES else None
    return str(arguments[0]) if event in CHANGES else None


def hook(event: str, arguments: tuple) -> None:
    global number, busy
    if busy or (event != "open" and event not in CHANGES):
        return
    busy = True
    try:
        path = path_of(event, arguments)
        if path is None or not os.path.abspath(path).startswith(below):
            return
        number += 1
        if log:
            with open(log, "a") as file:
                file.write(f"{event}\t{os.path.abspath(path).removeprefix(below)}\n")
        if number == abs(at):
            if at < 0 and event == "open":
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
            os.kill(os.getpid(), signal.SIGKILL)
    finally:
        busy = False


if below and any(os.path.basename(part) == "dvc" for part in sys.orig_argv[:3]):
    sys.addaudithook(hook)
