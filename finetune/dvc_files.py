"""Whether files are the ones that dvc.lock names, by their hashes.

DVC trusts what is read-only in its cache, and what has the age and size that it remembers: it hashes neither again.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from finetune import yaml_file
from finetune.errors import UserError

FOLDER = ".dir"
"""Ends the hash of a folder: that of the sorted list of its files and their hashes, which is an object itself."""


def check_inputs() -> None:
    """Where DVC runs a stage: that what it reads of other stages is what they made.

    Raises UserError that names what isn't. DVC then takes it for changed, and brings it back when it is run again.
    """
    stage = os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    if "FINETUNE_LAUNCHER" in os.environ:  # which has looked
        return
    pipeline, lock = Path("dvc.yaml"), Path("dvc.lock")
    if not stage or not pipeline.exists() or not lock.exists():
        return
    made = outputs(parse_lock(lock.read_text(encoding="utf-8"), "workspace"))
    for path in sorted(_inputs(yaml_file.read(pipeline)["stages"], stage) & set(made)):
        found = differing(Path(path), made[path])
        if found:
            _let_dvc_see(found)
            raise UserError(
                f"{', '.join(map(str, found))}: not what dvc.lock says (damaged, or edited since); run DVC again: it brings "
                f"back what its cache has whole, and makes the rest again"
            )


def parse_lock(text: str, name: str) -> dict:
    """What dvc.lock of run `name` says.

    Raises UserError if it isn't whole: DVC writes it in place, so a kill or a full disk in that moment cuts it short.
    """
    try:
        lock = yaml_file.parse(text, "dvc.lock")
        hashes(lock, "deps"), hashes(lock, "outs")
    except (UserError, LookupError, TypeError, AttributeError):
        raise UserError(
            f"{name}: its dvc.lock is cut short or damaged; bring the committed one back (`git checkout dvc.lock`), "
            f"then run `dvc repro`"
        ) from None
    return lock


def outputs(lock: dict) -> dict[str, str]:
    """Path -> hash of each output in dvc.lock."""
    return hashes(lock, "outs")


def hashes(lock: dict, kind: str) -> dict[str, str]:
    """Path -> hash of all that the stages read ("deps") or made ("outs")."""
    return {item["path"]: item["md5"] for entry in lock["stages"].values() for item in entry.get(kind, [])}


def differing(path: Path, expected: str, *databases: Any) -> dict[Path, str]:
    """What of `path`, a file or folder, isn't as the hash `expected` has it -> the hash that it should have.

    Names files where one of `databases` (default: DVC's cache) has the list of them, else `path`. What lies in a folder
    in addition doesn't count.
    """
    if path.exists() and _hash(path) == expected:
        return {}
    if not databases:
        from dvc.repo import Repo

        with Repo() as repo:
            return differing(path, expected, repo.cache.local)
    files = next(filter(None, (listing(database, expected) for database in databases)), None)
    if files is None:
        return {path: expected}
    beneath = {path / name: md5 for name, md5 in files.items()}
    return {file: md5 for file, md5 in beneath.items() if not file.is_file() or hash_of(file) != md5}


def listing(database: Any, md5: str) -> dict[str, str] | None:
    """Name -> hash of the files in the folder of hash `md5`; None where it is no folder's, or where DVC's cache or remote
    `database` hasn't that list whole."""
    path = database.oid_to_path(md5)
    if not md5.endswith(FOLDER) or not database.fs.exists(path):
        return None
    with database.fs.open(path, "rb") as file:
        text = file.read()
    if hashlib.md5(text, usedforsecurity=False).hexdigest() + FOLDER != md5:
        return None
    return {row["relpath"]: row["md5"] for row in json.loads(text)}


def drop_damaged(cache: Any, objects: Iterable[str]) -> list[str]:
    """Remove each of `objects` that isn't as its hash says from DVC's cache, as DVC does when it hashes one. Returns the
    hashes of those."""
    paths = {md5: Path(cache.oid_to_path(md5)) for md5 in objects}
    dropped = [md5 for md5, path in paths.items() if path.exists() and hash_of(path) != md5.removesuffix(FOLDER)]
    for md5 in dropped:
        paths[md5].unlink()
    return dropped


def hash_of(path: Path) -> str:
    """Hex MD5 of a file, which is its name in DVC."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def _hash(path: Path) -> str:
    """The hash that DVC gives a file or a folder."""
    if path.is_file():
        return hash_of(path)
    files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
    rows = [{"md5": hash_of(file), "relpath": name} for name, file in files]
    return hashlib.md5(json.dumps(rows).encode(), usedforsecurity=False).hexdigest() + FOLDER


def _let_dvc_see(files: Mapping[Path, str]) -> None:
    """Have DVC hash `files` again, which a new age does, and take nothing damaged for them from its cache."""
    from dvc.repo import Repo

    for file in files:
        if file.exists():
            os.utime(file)
    with Repo() as repo:
        drop_damaged(repo.cache.local, files.values())


def _inputs(stages: dict, stage: str) -> set[str]:
    """The paths that `stage` of dvc.yaml depends on; of a `foreach`, the one that follows the @."""
    name, _, key = stage.partition("@")
    entry = stages.get(name, {})
    each = entry.get("foreach", [])
    item = each[key] if isinstance(each, dict) else key
    values = {"key": key, "item": item} | ({f"item.{k}": v for k, v in item.items()} if isinstance(item, dict) else {})
    deps = entry.get("do", entry).get("deps", [])
    return {re.sub(r"\$\{(.+?)\}", lambda match: str(values.get(match[1], match[0])), dep) for dep in deps}
