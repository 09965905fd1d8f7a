"""`kill -9` of DVC at any of the changes that it makes to a repository's files."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from helpers import command

KILLER = Path(__file__).parent / "killer"


class Scene:
    """A repository that is laid anew for each kill of a `dvc` command."""

    def __init__(self, start: Path, folder: Path, *arguments: str) -> None:
        self.start, self.folder, self.arguments = start, folder, arguments
        self._site = folder.with_name(f"{folder.name}-site")

    def changes(self) -> list[str]:
        """What the command changes when nobody kills it: event and path, in order."""
        log = self.folder.with_name("changes.log")
        log.unlink(missing_ok=True)
        assert self._run(KILL_LOG=str(log)) == 0
        return log.read_text().splitlines()

    def kill(self, at: int) -> bool:
        """Kill the command at its change number `at`; negative: right after it has emptied that file. Whether it came
        so far."""
        return self._run(KILL_AT=str(at)) == -signal.SIGKILL

    def dvc(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run a `dvc` command that nobody kills."""
        return command("dvc", *arguments, cwd=self.folder, DVC_SITE_CACHE_DIR=str(self._site))

    def _run(self, **environment: str) -> int:
        for folder in (self.folder, self._site):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.start, self.folder, symlinks=True)
        environment |= {"PYTHONPATH": str(KILLER), "KILL_BELOW": f"{self.folder}{os.sep}"}
        return command(
            "dvc", *self.arguments, cwd=self.folder, DVC_SITE_CACHE_DIR=str(self._site), **environment
        ).returncode

    def damaged_objects(self) -> Iterator[Path]:
        """Objects of the cache that DVC would trust, as they are read-only, and whose content isn't what their name
        says."""
        for path in (self.folder / ".dvc/cache/files/md5").glob("??/*"):
            name = path.parent.name + path.name.removesuffix(".dir")
            trusted = path.stat().st_mode & 0o777 == 0o444
            if trusted and hashlib.md5(path.read_bytes()).hexdigest() != name:
                yield path


def at(changes: list[str], pattern: str) -> list[int]:
    """The numbers of the changes that `pattern` fits."""
    return [number for number, change in enumerate(changes, start=1) if re.search(pattern, change)]
