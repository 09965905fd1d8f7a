"""Remotes of each kind, on real servers that the tests start."""

import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from helpers import GIT, dvc, files_in
from remotes.relay import Relay
from remotes.servers import BUCKET, PASSWORD, USER

PART = 100_000
"""Bytes."""


@dataclass
class Remote:
    """Where clones push to: a folder, or a server before which a relay stands."""

    kind: str
    folder: Path
    """What the server keeps lies here; S3's does not."""
    process: subprocess.Popen | None = None
    relay: Relay = field(init=False)

    def start(self) -> int:
        """Start the server; returns its port."""
        script = Path(__file__).with_name("servers.py")
        self.process = subprocess.Popen(
            [sys.executable, script, self.kind, self.folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def stop(self) -> None:
        """Kill the server: no chance to put anything in order."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop_in_mid_file(self) -> None:
        """Kill the server when it has written the first part of a large file that it is being sent."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and max(map(len, files_in(self.folder).values()), default=0) < PART:
            time.sleep(0.05)
        self.stop()

    @property
    def settings(self) -> dict[str, str]:
        """The remote in DVC's configuration, as docs/sharing.md has it."""
        if self.kind == "folder":
            return {"url": str(self.folder)}
        port = self.relay.own_port
        if self.kind == "s3":
            keys = {"access_key_id": "key", "secret_access_key": "secret"}
            return {"url": f"s3://{BUCKET}/dvc", "endpointurl": f"http://127.0.0.1:{port}", **keys}
        login = {"user": USER, "password": PASSWORD}
        return {"url": f"{self.kind}://127.0.0.1:{port}/dvc", **login}


@pytest.fixture
def remote(request, tmp_path) -> Iterator[Remote]:
    """A remote of the kind that the test names."""
    one = Remote(request.param, tmp_path / "storage")
    (one.folder / "dvc").mkdir(parents=True)
    if one.kind != "folder":
        one.relay = Relay(one.start())
    if one.kind == "s3":
        url = f"http://127.0.0.1:{one.relay.own_port}/{BUCKET}"
        urllib.request.urlopen(urllib.request.Request(url, method="PUT")).close()
    yield one
    one.stop()


@pytest.fixture
def first(clone, tmp_path, remote) -> Path:
    """The reproduced clone, which has everything, and `remote` as its DVC remote."""
    folder = cloned(clone, tmp_path / "first", remote)
    shutil.copytree(clone / ".dvc/cache", folder / ".dvc/cache")
    assert dvc(folder, "checkout").returncode == 0
    return folder


def cloned(origin: Path, folder: Path, remote: Remote) -> Path:
    """A fresh clone of `origin` with an empty cache, and `remote`, whose credentials stay outside Git."""
    subprocess.run([*GIT, "clone", "--quiet", origin, folder], check=True)
    lines = ["[core]", "remote = store", "['remote \"store\"']", "verify = true"]
    lines += [f"{key} = {value}" for key, value in remote.settings.items()]
    (folder / ".dvc/config.local").write_text("\n".join(lines) + "\n")
    return folder
