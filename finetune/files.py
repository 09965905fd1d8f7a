"""Outputs appear whole or not at all: written under a temporary name, then renamed."""

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from finetune import disk
from finetune.errors import UserError


@contextmanager
def whole_folder(path: Path, keep: str | None = None) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` if the block succeeds, replacing all that was there but `keep`.

    Another process that writes `path` is waited for. Raises UserError if the disk is full, or refuses.
    """
    # A link to a folder was set by the user, whose outputs lie elsewhere for their size: they are replaced there.
    path = Path(os.path.realpath(path))
    # Beside `path` and not in the system's temporary folder: a rename is one step within a file system only.
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
        sentence = disk.sentence(error, path)
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


def write_yaml(path: Path, value: dict) -> None:
    """Write `value` as YAML, keys in their order."""
    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def read_yaml(path: Path) -> dict:
    """Read what `write_yaml` wrote."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


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
