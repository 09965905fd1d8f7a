"""Snapshots of a run: a folder for each, whole or not there, of which a later one takes the place of the earlier."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.files import read_json, whole_folder, write_json

_CONTENTS = "contents.json"
_BLOCK = 2**24


@contextmanager
def written(run: Path, step: int) -> Iterator[Path]:
    """Yield a folder to write files into, which is the snapshot of `step` in the folder `run` if the block succeeds.

    It is on the disk, not only in the system's memory, before those of other steps are removed. Raises UserError if
    the disk refuses.
    """
    target = run / f"step-{step}"
    with whole_folder(target) as draft:
        yield draft
        for path in draft.iterdir():
            _flush(path)
        write_json(draft / _CONTENTS, {path.name: _check(path) for path in sorted(draft.iterdir())})
        _flush(draft / _CONTENTS)
    for path in run.glob("*step-*"):  # also the draft of a process that was killed
        if path != target:
            shutil.rmtree(path, ignore_errors=True)


def newest(run: Path) -> Path | None:
    """The folder of the latest snapshot in `run` whose files are as they were written; None if there is none."""
    whole = (folder for folder in sorted(_folders(run), key=_step, reverse=True) if _is_whole(folder))
    return next(whole, None)


def link(source: Path, target: Path) -> None:
    """Let `target`, of the next snapshot, hold what `source`, of the last one, does: without copying where that can be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def _folders(run: Path) -> list[Path]:
    return [path for path in run.glob("step-*") if path.is_dir()]


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _is_whole(folder: Path) -> bool:
    """A rename is one step only for who reads it at the time: after the machine itself failed, anything may be missing."""
    try:
        contents: dict[str, Any] = read_json(folder / _CONTENTS)
        return all(_check(folder / name) == check for name, check in contents.items())
    except (OSError, ValueError):
        return False


def _check(path: Path) -> list[int]:
    """Size in bytes, and CRC-32."""
    check = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            check = zlib.crc32(block, check)
    return [path.stat().st_size, check]


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
