"""Ray clusters on this machine: each node has processes and a home of its own, and dies as a machine does."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from helpers import ROOT, free_port

_RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
_MEMORY = ["--object-store-memory", "80000000"]
"""Bytes; Ray takes no less."""


@dataclass
class RayCluster:
    """A head without CPUs, and nodes of one CPU, which are the only ones to take trials."""

    address: str
    scratch: Path
    """Where the head has its sockets, whose paths may be 107 characters long."""
    homes: list[Path] = field(default_factory=list)

    def add_node(self, home: Path) -> None:
        """Start a node whose home is `home`."""
        home.mkdir(parents=True)
        self.homes.append(home)
        _start([*_RAY, "--address", self.address, "--num-cpus", "1", *_MEMORY], home)

    def kill_node(self, home: Path) -> None:
        """Kill the node, and all that runs there, at once."""
        for process in _at_home(home):
            process.kill()

    def end(self) -> None:
        """Kill all nodes."""
        for home in [*self.homes, self.scratch]:
            self.kill_node(home)
        shutil.rmtree(self.scratch, ignore_errors=True)


def start_cluster() -> RayCluster:
    """A cluster that has its head alone."""
    scratch = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    port = free_port()
    head = ["--head", "--num-cpus", "0", "--include-dashboard", "false", "--temp-dir", str(scratch / "r")]
    _start([*_RAY, *head, "--port", str(port), *_MEMORY], scratch)
    return RayCluster(f"127.0.0.1:{port}", scratch)


def _start(words: list[str], home: Path) -> None:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    patience = {"RAY_raylet_start_wait_time_s": "300", "RAY_worker_register_timeout_seconds": "300"}
    environment = os.environ | patience | {"HOME": str(home), "PYTHONPATH": paths}
    with (home / "log").open("w") as log:
        subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=home)
    for _ in range(3000):
        if "Ray runtime started" in (home / "log").read_text():
            return
        time.sleep(0.1)
    raise TimeoutError((home / "log").read_text())


def _at_home(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found
