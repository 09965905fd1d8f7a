"""Where an interrupted stage leaves its finished work: a folder for each run, locked while the run is active.

A training run keeps snapshots in it, each a folder `step-N` that is complete or absent; a newer one replaces the older.
"""

import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from finetune import dvc_files, places
from finetune.errors import UserError
from finetune.files import disk_named, read_json, whole_folder, write_json, write_text

FOLDER = Path("models/.snapshots")
"""Relative to the root. It is no output of a stage, so DVC does not remove it before it starts the stage again."""

MOST_RUNS = 3
"""This many other interrupted runs are kept, the latest. Each has one snapshot, and a second while that is written."""

_FINISHED = "finished"
"""A file with the MD5 of the run's metrics, by which dvc.lock tells whether DVC has recorded the run."""

_CONTENTS = "contents.json"
"""A snapshot's file with the size and checksum of the others."""

_BLOCK = 2**24


@contextmanager
def run_folder(stage: str, identity: str, metrics: Path) -> Iterator[Path]:
    """Yield the folder of this run, with what an interrupted run of the same `identity` has left in it.

    The folder is removed when the block ends without an error, having written the file `metrics`. Where DVC runs the
    stage, it stays until the next run of that stage: DVC may be killed before it has recorded the outputs, and it removes
    them when it starts again. Raises UserError if another process has locked the same run.
    """
    kept = places.original(FOLDER)
    folder = kept / f"{stage}-{identity}"
    with disk_named(kept):
        kept.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder):
            if _recorded(folder):
                shutil.rmtree(folder)
            _remove_old_runs(kept, stage, folder)
            with disk_named(folder):
                folder.mkdir(exist_ok=True)
            yield folder
            if os.environ.get("DVC_STAGE") and not places.in_copy():
                with suppress(UserError):  # the disk is full, but the stage's outputs are written
                    write_text(folder / _FINISHED, dvc_files.hash_of(metrics))
            else:
                shutil.rmtree(folder)
    finally:
        for empty in (folder, kept, kept.parent):
            with suppress(OSError):
                empty.rmdir()


@contextmanager
def new_snapshot(run: Path, step: int) -> Iterator[Path]:
    """Yield a folder to write files into. It becomes the snapshot of `step` in the folder `run` if the block succeeds.

    Its files are flushed to the disk before the snapshots of other steps are removed. Raises UserError if the disk fails.
    """
    target = run / f"step-{step}"
    with whole_folder(target) as draft:
        yield draft
        for path in draft.iterdir():
            _flush(path)
        write_json(draft / _CONTENTS, {path.name: _checksum(path) for path in sorted(draft.iterdir())})
        _flush(draft / _CONTENTS)
    for path in run.glob("*step-*"):  # also the draft of a process that was killed
        if path != target:
            shutil.rmtree(path, ignore_errors=True)


def newest_snapshot(run: Path) -> Path | None:
    """The latest snapshot in the folder `run` whose files are as they were written; None if there is none."""
    folders = sorted((path for path in run.glob("step-*") if path.is_dir()), key=_step, reverse=True)
    return next((folder for folder in folders if _is_intact(folder)), None)


def link_or_copy(source: Path, target: Path) -> None:
    """Make the file `target` of a new snapshot from `source`: a hard link where the file system has them, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def _step(snapshot: Path) -> int:
    return int(snapshot.name.removeprefix("step-"))


def _is_intact(snapshot: Path) -> bool:
    """A rename is atomic for other processes only: after the machine itself failed, any file may be missing or short."""
    try:
        contents: dict[str, Any] = read_json(snapshot / _CONTENTS)
        return all(_checksum(snapshot / name) == checksum for name, checksum in contents.items())
    except (OSError, ValueError):
        return False


def _checksum(path: Path) -> list[int]:
    """Size in bytes, and CRC-32."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return [path.stat().st_size, crc]


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _recorded(folder: Path) -> bool:
    """Whether dvc.lock names the metrics of the run that finished in `folder`. If so, this run was forced."""
    mark, lock = folder / _FINISHED, Path("dvc.lock")
    return mark.exists() and lock.exists() and mark.read_text() in lock.read_text(encoding="utf-8")


def _remove_old_runs(kept: Path, stage: str, own: Path) -> None:
    """Remove the finished runs of `stage` except `own`, and all but the latest interrupted runs."""
    others = [folder for folder in kept.iterdir() if folder.is_dir() and folder != own]
    others.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    finished = [folder for folder in others if (folder / _FINISHED).exists()]
    interrupted = [folder for folder in others if folder not in finished]
    for folder in [one for one in finished if one.name.startswith(f"{stage}-")] + interrupted[MOST_RUNS:]:
        with suppress(UserError), _locked(folder):
            shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, which the system releases however the process ends. Where the system has no file locks
    (Windows, some network disks), nothing is held."""
    path = folder.with_suffix(".lock")
    with disk_named(folder):
        file = _lock(path, folder)
    with file:
        try:
            with disk_named(folder):
                file.truncate(0)
                file.write(str(os.getpid()).encode())
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(path: Path, folder: Path) -> FileIO:
    while True:
        file = path.open("a+b", buffering=0)  # with a buffer, closing would retry a write that a full disk refused
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().decode() or "unknown"
            raise UserError(f"{folder}: process {owner} is running the same stage; wait for it, or stop it") from None
        except (ImportError, OSError):
            return file
        # The previous owner may have removed the file in the meantime. The lock is then on no file.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()
