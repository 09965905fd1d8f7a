"""A folder of the first process's, where every process can read it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from finetune.distributed.group import Group

_BLOCK = 2**26
"""Bytes sent at a time."""


@contextmanager
def for_all(folder: Path | None, group: Group) -> Iterator[Path]:
    """The first process's `folder`, to write into; where it can't be seen, on another machine, one for the time of the block."""
    place = Path(group.from_first(str((folder or Path()).resolve())))
    if place.is_dir():
        yield place
    else:
        with TemporaryDirectory() as scratch:
            yield Path(scratch)


def seen_by_all(folder: Path | None, group: Group, scratch: Path) -> Path | None:
    """The first process's `folder`, or a copy of it in `scratch` where it can't be seen: on another machine."""
    place = group.from_first(None if folder is None else str(folder.resolve()))
    if place is None or group.size == 1:
        return folder
    sizes = group.from_first(_sizes(Path(place)))
    here = Path(place) if _sizes(Path(place)) == sizes else scratch / Path(place).name
    if group.any(here != Path(place))[0]:
        for name, size in sizes.items():
            _send(Path(place) / name, size, here / name, group)
    return here


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file; the first process's are whole, and of one run no two snapshots are of one step."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def _send(source: Path, size: int, target: Path, group: Group) -> None:
    """Let every process whose `target` isn't `source` write there what the first one reads."""
    target.parent.mkdir(parents=True, exist_ok=True)
    place = Path(os.devnull) if target == source else target
    with source.open("rb") if group.is_first else place.open("wb") as file:
        for _ in range(0, size, _BLOCK):
            block = group.from_first(file.read(_BLOCK) if group.is_first else b"")
            if not group.is_first:
                file.write(block)
