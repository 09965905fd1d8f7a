"""A small disk that can be filled to the last page, and the stages that write to it."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import files_in, stage

PAGE = 4096
STAGES = {
    "fetch model": "fetch model --model_name {llama}",
    "fetch data": "fetch data",
    "prepare": "prepare --model_name {llama}",
    "quantize": "quantize --model_name {llama}",
    "train qlora": "train --model_name {llama-4bit}",
    "eval": "eval --model_name {llama-4bit}",
    "eval base": "eval --base --model_name {llama}",
    "plot": "plot",
    "train full": "train --method full --model_name {llama}",
}
"""In an order in which each finds what it reads; 'train full' comes last and replaces what 'train qlora' made."""

OF_THE_CLOCK = ("metrics/train.json", "metrics/train.facts.json", "plots/live/", "plots/memory.", "data/.tmp")
"""Files with times and memory, which differ from run to run."""


@dataclass(frozen=True)
class Step:
    """A stage run with nothing in its way."""

    command: str
    before: Path
    """The workspace before it."""
    after: Path
    """And after it."""

    def run(self) -> None:
        """Run it in the folder at hand. May raise SystemExit."""
        stage(*self.command.split())

    def new(self) -> list[str]:
        """The files that it makes or changes."""
        before, after = files_in(self.before), files_in(self.after)
        return [name for name in after if before.get(name) != after[name]]


class Disk:
    """A tmpfs mounted at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def free(self) -> int:
        """Bytes."""
        state = os.statvfs(self.folder)
        return state.f_bavail * state.f_frsize

    @contextmanager
    def with_room_for(self, size: int) -> Iterator[None]:
        """Nothing but `size` bytes is free in the block, if no more are free already."""
        with self._ballast.open("wb") as file:
            if self.free() > size:
                os.posix_fallocate(file.fileno(), 0, self.free() - size)
        try:
            yield
        finally:
            self._ballast.unlink()

    def lay(self, tree: Path) -> None:
        """Hold a copy of `tree`, and nothing else."""
        for entry in self.folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        shutil.copytree(tree, self.folder, dirs_exist_ok=True)


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Disk]:
    """A disk of `size` at `folder`; the test is skipped where mounting isn't allowed."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("mounting isn't allowed here")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """The system's temporary folder is `folder` in the block, for this process."""
    folder.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def record(folder: Path, models: dict[str, Path], words: list[dict], write_params) -> dict[str, Step]:
    """Run all stages in `folder`/work, one after the other, and keep what each found and left."""
    work = folder / "work"
    work.mkdir()
    (folder / "words.json").write_text(json.dumps(words))
    write_params(work, data={"source": str(folder / "words.json"), "size": 40})
    before = shutil.copytree(work, folder / "start")
    here, steps = Path.cwd(), {}
    os.chdir(work)
    try:
        for name, line in STAGES.items():
            command = line.format(**models)
            stage(*command.split())
            after = shutil.copytree(work, folder / name.replace(" ", "-"))
            steps[name], before = Step(command, before, after), after
    finally:
        os.chdir(here)
    return steps
