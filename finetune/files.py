"""Outputs appear whole or not at all: written under a temporary name, then renamed. What the disk refuses is a sentence,
before the work where it can be foreseen."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
    errno.ESTALE: "the network disk lost it; mount it again, and retry",
}
_FULL = "no space left on device"
_NUMBER = re.compile(r"\(os error ([0-9]+)\)")
"""How Rust writes the system's number of an error."""
_NO_TEMPORARY_FOLDER = "No usable temporary directory"
"""How Python says that it could write a file in none of the places for temporary ones."""
_DRAFT = re.compile(r"(?:(?<=/)|^)\.([^/]+?)(?:\.new-\w{8}|\.before)?\.draft(?=/|$)")
"""The name of an output that is being written (`files`)."""
_LONGEST_PATH = 200


@contextmanager
def whole_folder(path: Path, keep: str | None = None) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` if the block succeeds, replacing all that was there but `keep`.

    Another process that writes `path` is waited for. Raises UserError if the disk is full, or refuses.
    """
    # A link to a folder was set by the user, whose outputs lie elsewhere for their size: they are replaced there.
    path = Path(os.path.realpath(path))
    # Next to `path` and not in the system's temporary folder: a rename is one step within a file system only.
    draft = path.with_name(f".{path.name}.draft")
    with disk_named(path):
        lock = _lock(draft)
        try:
            # What a killed process left.
            for entry in draft.iterdir():
                _remove(entry)
            yield draft
            _replace(path, draft, keep)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """Make `folder`, wait until no other process holds it, and hold it as long as the handle that is returned is open.

    None where folders can't be locked (Windows).
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        handle = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # a network disk without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        # Who held it has renamed or removed that folder by now. Then the new one of its name is meant.
        folder.mkdir(parents=True, exist_ok=True)
        if os.path.samestat(os.fstat(handle), folder.stat()):
            return handle
        os.close(handle)


def _replace(path: Path, draft: Path, keep: str | None) -> None:
    """Rename `draft` to `path`, with `keep` of what was there. All of that is put back if it fails."""
    before = path.with_name(f".{path.name}.before.draft")
    if path.exists():
        _remove(before)
        path.rename(before)
    try:
        draft.rename(path)
    except OSError:
        if before.exists():
            before.rename(path)
        raise
    if keep and (before / keep).exists():
        (before / keep).rename(path / keep)
    _remove(before)


def _remove(path: Path) -> None:
    """Remove a file or folder, a read-only one too; of a link (DVC's, into its cache) only the link."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for folder, _, names in os.walk(path):
        Path(folder).chmod(stat.S_IRWXU)
        if os.name == "nt":  # elsewhere the folder's permission counts, and a hard link shares its own with DVC's cache
            for name in names:
                Path(folder, name).chmod(stat.S_IWRITE)
    shutil.rmtree(path)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the name of a new file that becomes `path` if the block, which writes it, succeeds.

    A link at `path` is replaced, not written through: with DVC's links that would change the cache. Raises UserError
    if the disk is full, or refuses.
    """
    with disk_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.new-", suffix=".draft", dir=path.parent)
        os.close(handle)
        draft = Path(name)
        try:
            yield draft
            draft.chmod(0o666 & ~_umask())  # mkstemp's files are for their owner only
            # Not `rename`, which refuses to overwrite a file on Windows.
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def disk_named(path: Path) -> Iterator[None]:
    """Turn what the disk refuses in the block into a UserError about `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        sentence = disk_sentence(error, path)
        if sentence is None:
            raise
        raise UserError(sentence) from error


def copy_into(target: Path, paths: Iterable[Path], source: Path) -> None:
    """Copy the files `paths`, which lie somewhere in the folder `source`, to the same places in the folder `target`."""
    for path in paths:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: dict) -> None:
    """Write `value` as indented JSON, keys in their order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """Write one JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict]:
    """Read what `write_jsonl` wrote."""
    return jsonl_rows(path.read_text(encoding="utf-8"))


def jsonl_rows(text: str) -> list[dict]:
    """The objects in the text that `write_jsonl` wrote; `str.splitlines` would also split inside strings, at U+2028."""
    return [json.loads(line) for line in text.split("\n") if line]


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(*places: Path, free_gb: float = 0.01) -> None:
    """That files can be made at `places` (folders, which need not exist yet), with `free_gb` GB to spare at each.

    One line at the start of a stage: `files.check_writable(out.folder, out.metrics, free_gb=2)`. A file is made and
    removed there, or in the nearest folder above that exists; nothing stays. Raises UserError naming the place that
    can't be written, or has less to spare. Under `dvc repro` DVC's cache is such a place as well: a copy of what the
    stage makes goes there, and a run whose copy fails counts for nothing.
    """
    for place in places:
        _check(place, free_gb)
    cache = _dvc_cache()
    if cache is not None:
        try:
            _check(cache, 2 * free_gb if any(same_disk(place, cache) for place in places) else free_gb)
        except UserError as error:
            raise UserError(f"DVC's cache, {error} (`dvc cache dir --local FOLDER`)") from None


def same_disk(place: Path, other: Path) -> bool:
    """Whether two places, which need not exist yet, lie on the same disk."""
    return existing(place).stat().st_dev == existing(other).stat().st_dev


def _check(place: Path, free_gb: float) -> None:
    try:
        _try_to_write(place)
    except (OSError, ValueError) as error:
        raise UserError(disk_sentence(error, place) or f"{quoted(str(place))}: can't be written ({error})") from None
    free = shutil.disk_usage(existing(place)).free / 1e9
    if free < free_gb:
        raise UserError(
            f"{_short(place)}: {free:.2f} GB are free on its disk, and about {free_gb:.2f} GB are needed; "
            f"free some space, or write to another disk"
        )


def disk_sentence(error: BaseException, place: Path | None = None) -> str | None:
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


def _dvc_cache() -> Path | None:
    """DVC's cache, from the folder at hand; None if it isn't DVC that runs this stage."""
    if "DVC_STAGE" not in os.environ:
        return None
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            return Path(os.path.relpath(repo.cache.local.path))
    except NotDvcRepoError:  # a stage's script that a stage of another repository calls
        return None
