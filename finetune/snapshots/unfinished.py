"""Where a stage keeps what it has done so far, so that a run that is killed goes on where it was."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from finetune import dvc_files, places
from finetune.errors import UserError
from finetune.files import disk_named, write_text

FOLDER = Path("models/.snapshots")
"""From the root. No output of a stage, so DVC doesn't remove it before it starts one again."""

MOST_RUNS = 3
"""Of other interrupted runs so many are kept, the latest; each run keeps one snapshot, and one more while it is written."""

_FINISHED = "finished"
"""A file: the MD5 of the run's metrics, by which dvc.lock tells whether DVC has recorded the run."""


@contextmanager
def unfinished(stage: str, identity: str, metrics: Path) -> Iterator[Path]:
    """Yield a folder of the run's own, with what an interrupted run of the same `identity` has left in it.

    A block that ends well, having written the file `metrics`, leaves nothing. Only where DVC runs the stage its folder
    stays until the next run of that stage, because DVC may be killed before it has recorded the outputs, which it removes
    when it starts again. Raises UserError if another process is at work on the same.
    """
    kept = places.original(FOLDER)
    folder = kept / f"{stage}-{identity}"
    with disk_named(kept):
        kept.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder):
            if _recorded(folder):
                shutil.rmtree(folder)
            _tidy(kept, stage, folder)
            with disk_named(folder):
                folder.mkdir(exist_ok=True)
            yield folder
            if os.environ.get("DVC_STAGE") and not places.in_copy():
                with suppress(UserError):  # a full disk: what the stage was to make is there
                    write_text(folder / _FINISHED, dvc_files.hash_of(metrics))
            else:
                shutil.rmtree(folder)
    finally:
        for empty in (folder, kept, kept.parent):
            with suppress(OSError):
                empty.rmdir()


def _recorded(folder: Path) -> bool:
    """Whether dvc.lock names the metrics of the run that has finished in `folder`: a run that starts now was forced."""
    mark, lock = folder / _FINISHED, Path("dvc.lock")
    return mark.exists() and lock.exists() and mark.read_text() in lock.read_text(encoding="utf-8")


def _tidy(kept: Path, stage: str, own: Path) -> None:
    """Remove the stage's finished runs but `own`, and all but the latest of the interrupted ones."""
    others = [folder for folder in kept.iterdir() if folder.is_dir() and folder != own]
    others.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    finished = [folder for folder in others if (folder / _FINISHED).exists()]
    interrupted = [folder for folder in others if folder not in finished]
    gone = [folder for folder in finished if folder.name.startswith(f"{stage}-")] + interrupted[MOST_RUNS:]
    for folder in gone:
        with suppress(UserError), _locked(folder):
            shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, which the system frees however the process ends. Where it knows none (Windows, some
    network disks), nothing is held."""
    path = folder.with_suffix(".lock")
    with disk_named(folder):
        file = _opened(path, folder)
    with file:
        try:
            with disk_named(folder):
                file.truncate(0)
                file.write(str(os.getpid()).encode())
            yield
        finally:
            path.unlink(missing_ok=True)


def _opened(path: Path, folder: Path) -> FileIO:
    while True:
        file = path.open("a+b", buffering=0)  # closing it would try in vain to write what a full disk hasn't taken
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{folder}: process {file.read().decode() or 'unknown'} is at work on the same run; wait for it, or stop it"
            ) from None
        except (ImportError, OSError):
            return file
        # Who held it may have removed it in the meantime: then the lock is one of no file.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()
