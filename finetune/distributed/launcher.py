"""A stage as several processes: started, watched, and ended together, with one sentence for what went wrong.

Each learns from its environment who it is, by the names that torchrun uses, so that torchrun can start them as well.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import finetune
from finetune import ending, places
from finetune.errors import UserError

_POLL = 0.1
"""Seconds between two looks at the processes."""
_GRACE = 120.0
"""Seconds that the others have to write down how far they are, when one has ended or a signal has come."""


def is_worker() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def launched(processes: int, *, over_machines: bool = False) -> bool:
    """Run the command at hand as so many `processes`; False if it is to run in this one alone.

    Also `over_machines`, if MASTER_ADDR, MASTER_PORT, NNODES and NODE_RANK say so, as for torchrun: the command is then
    given on each. Raises UserError, or `ending.Ended` after a signal, that says which process ended why.
    """
    nodes = _number("NNODES", 1) if over_machines else 1
    if is_worker() or processes * nodes == 1:
        return False
    with TemporaryDirectory() as scratch:
        workers = _start(processes, nodes, Path(scratch))
        try:
            while None in (codes := [worker.process.poll() for worker in workers]) and not any(codes):
                time.sleep(_POLL)
        except (ending.Ended, KeyboardInterrupt) as ended:
            number = getattr(ended, "number", signal.SIGINT)
            _end(workers, number)
            raise ending.Ended(number, workers[0].kept()) from None
        dead = [worker for worker in workers if worker.process.returncode]
        if dead:
            # Those that the death of another ends may be seen in the same look.
            _end(workers, signal.SIGTERM)
            raise UserError(_cause(dead, workers))
    return True


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    rank: int
    sentence: Path

    def error(self) -> str:
        """The sentence with which it has ended; empty if there is none."""
        return self.sentence.read_text().removeprefix("error: ") if self.sentence.exists() else ""

    def kept(self) -> str:
        """What is kept of the work, in words, if the end came from outside."""
        said = self.error()
        return said.partition("; ")[2] if said.startswith((ending.LOST, *ending.WORDS)) else ""


def _start(processes: int, nodes: int, scratch: Path) -> list[_Worker]:
    own = Path(finetune.__file__).parents[1]
    environment = os.environ | {
        "WORLD_SIZE": str(processes * nodes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": _address(nodes),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(_free_port()),
        "FINETUNE_LAUNCHER": str(os.getpid()),
        # In the copy in which DVC runs a queued experiment, the code is the copy's.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(own), os.environ.get("PYTHONPATH")])),
    }
    # On a CPU all would use all cores, and wait for each other in spinning.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    first = _number("NODE_RANK", 0) * processes if nodes > 1 else 0
    workers = []
    for local in range(processes):
        rank, sentence = first + local, scratch / f"{local}.txt"
        process = subprocess.Popen(
            [sys.executable, *sys.argv],
            cwd=places.standing(),
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(local), ending.SENTENCE_FILE: str(sentence)},
            stdout=None if rank == 0 else subprocess.DEVNULL,
            stderr=None if rank == 0 else subprocess.DEVNULL,
            # Ctrl-C reaches all processes of a terminal's group: theirs is to come from here, once.
            start_new_session=True,
        )
        workers.append(_Worker(process, rank, sentence))
    return workers


def _end(workers: list[_Worker], number: int) -> None:
    for worker in workers:
        worker.process.send_signal(number)
    until = time.monotonic() + _GRACE
    for worker in workers:
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(max(0.0, until - time.monotonic()))
        worker.process.kill()
        worker.process.wait()


def _cause(dead: list[_Worker], workers: list[_Worker]) -> str:
    """Which process ended first, and why."""
    lost = [worker for worker in dead if worker.error().startswith(ending.LOST)]
    first = next((worker for worker in dead if worker not in lost), dead[0])
    if first.rank == 0 or first in lost:
        return first.error() or _status(first, workers)
    kept = workers[0].kept()
    return f"{_status(first, workers)}{f': {first.error()}' * bool(first.error())}{f'; {kept}' * bool(kept)}"


def _status(worker: _Worker, workers: list[_Worker]) -> str:
    code = worker.process.returncode
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return f"process {worker.rank} of {len(workers)} {how}"


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not re.fullmatch(r"\d{1,5}", text, re.ASCII):
        raise UserError(f"{name}: must be a whole number, got {text!r}")
    return int(text)


def _address(nodes: int) -> str:
    address = os.environ.get("MASTER_ADDR")
    if nodes > 1 and not (address and os.environ.get("MASTER_PORT")):
        raise UserError(
            f"NNODES is {nodes}: set MASTER_ADDR and MASTER_PORT as well, to an address of the first machine and a free "
            f"port there, and NODE_RANK to 0 on it and 1, 2, … on the others"
        )
    return address or "127.0.0.1"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
