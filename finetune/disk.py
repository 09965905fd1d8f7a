"""What a disk refuses, as a sentence: looked for before the work, and translated where it happens in its midst."""

import errno
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from finetune import dvc_cache
from finetune.errors import UserError, quoted

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space, or write to another disk",
    errno.EDQUOT: "your disk quota is used up; free some space, or write to another disk",
    errno.EFBIG: "the file grew beyond the largest size allowed here; raise the limit (`ulimit -f`), or use another disk",
    errno.EACCES: "permission denied; change its owner or its permissions",
    errno.EPERM: "not permitted; change its owner or its permissions",
    errno.EROFS: "lies on a read-only disk; write to another one",
    errno.ENAMETOOLONG: "the name is too long for this disk; shorten it",
    errno.ENOTDIR: "a part of this path is a file, not a folder; move the file away, or give another path",
    errno.EISDIR: "is a folder, and a file is needed; move the folder away, or give another path",
    errno.ELOOP: "is a symbolic link that leads to itself; remove the link",
    errno.EMFILE: "too many files are open; raise the limit (`ulimit -n`)",
    errno.EIO: "the disk reports an error; check it, and try again",
    errno.ESTALE: "the network disk lost it; mount it anew, and try again",
}
_FULL = "no space left on device"
_NUMBER = re.compile(r"\(os error ([0-9]+)\)")
"""How Rust writes the system's number of an error."""
_NO_TEMPORARY_FOLDER = "No usable temporary directory"
"""How Python says that it could write a file in none of the places for temporary ones."""
_DRAFT = re.compile(r"(?:(?<=/)|^)\.([^/]+?)(?:\.new-\w{8}|\.before)?\.draft(?=/|$)")
"""The name of an output that is being written (`files`)."""
_LONGEST_PATH = 200


def check_writable(*places: Path, free_gb: float = 0.01) -> None:
    """That files can be made at `places` (folders, which need not exist yet), with `free_gb` GB to spare at each.

    One line at the start of a stage: `disk.check_writable(out.folder, out.metrics, free_gb=2)`. A file is made and
    removed there, or in the nearest folder above that exists; nothing stays. Raises UserError naming the place that
    can't be written, or has less to spare. Under `dvc repro` DVC's cache is such a place as well: a copy of what the
    stage makes goes there, and a run whose copy fails counts for nothing.
    """
    for place in places:
        _check(place, free_gb)
    cache = dvc_cache.folder()
    if cache is not None:
        try:
            _check(cache, 2 * free_gb if any(shared(place, cache) for place in places) else free_gb)
        except UserError as error:
            raise UserError(f"DVC's cache, {error} (`dvc cache dir --local FOLDER`)") from None


def shared(place: Path, other: Path) -> bool:
    """Whether two places, which need not exist yet, lie on the same disk."""
    return existing(place).stat().st_dev == existing(other).stat().st_dev


def _check(place: Path, free_gb: float) -> None:
    try:
        _try_to_write(place)
    except (OSError, ValueError) as error:
        raise UserError(sentence(error, place) or f"{quoted(str(place))}: can't be written ({error})") from None
    free = shutil.disk_usage(existing(place)).free / 1e9
    if free < free_gb:
        raise UserError(
            f"{_short(place)}: {free:.2f} GB are free on its disk, and about {free_gb:.2f} GB are needed; "
            f"free some space, or write to another disk"
        )


def sentence(error: BaseException, place: Path | None = None) -> str | None:
    """What `error` (or what it came from) says of the disk, in a sentence; None if it is about something else.

    `place` is named where the error names no path of its own.
    """
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        remedy = _remedy(cause)
        if remedy:
            # Of a copy's two names the second is the one that is written.
            own = (cause.filename2 or cause.filename) if isinstance(cause, OSError) else None
            path = place if own is None else own
            return remedy if path is None else f"{_short(path)}: {remedy}"
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def _remedy(error: BaseException) -> str | None:
    if isinstance(error, FileNotFoundError) and _NO_TEMPORARY_FOLDER in str(error):
        return "no temporary file can be written; free some space, or name another folder for them (`export TMPDIR=…`)"
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return _REMEDIES[error.errno]
    # Writers in other languages (safetensors, Arrow) pass on the words of the system, not its number.
    number = _NUMBER.search(str(error))
    if number:
        return _REMEDIES.get(int(number[1]))
    return _REMEDIES[errno.ENOSPC] if _FULL in str(error).lower() else None


def _short(path: object) -> str:
    text = os.fsdecode(path) if isinstance(path, bytes | str | os.PathLike) else str(path)
    text = _DRAFT.sub(r"\1", text)
    return text if len(text) <= _LONGEST_PATH else f"{text[:_LONGEST_PATH]}…"


def _try_to_write(place: Path) -> None:
    """Make and remove a file in `place`, and in the folder that holds it: outputs are renamed into that one."""
    for folder in {existing(place), existing(place.parent)}:
        if not folder.is_dir():
            raise UserError(f"{folder}: is a file, and a folder is needed there; move it away, or give another path")
        try:
            with tempfile.TemporaryFile(dir=folder, suffix=".draft"):
                pass
        except OSError as error:
            raise OSError(error.errno, error.strerror) from None  # without the file's name, which says nothing
    place = Path(os.path.abspath(place))  # `.` has no name
    with suppress(FileNotFoundError):  # a name that is too long is one only when it is looked up
        place.with_name(f".{place.name}.draft").lstat()


def existing(place: Path) -> Path:
    """`place`, or the nearest folder above it that exists, links followed."""
    place = Path(os.path.realpath(place))
    while not place.exists() and place != place.parent:
        place = place.parent
    return place
