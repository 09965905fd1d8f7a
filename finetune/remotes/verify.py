"""Read again every file that DVC keeps, and compare it with its hash: in the cache, the workspace, the remote.

A whole file of the same hash takes the place of a damaged one, where this machine has one.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune import dvc_files
from finetune.errors import UserError

_OBJECT = re.compile(r"[0-9a-f]{32}(\.dir)?")
"""The name of an object. Other names are left over from interrupted uploads."""


@dataclass
class Place:
    """What was read in the cache, the workspace or the remote."""

    name: str
    remote: bool = False
    read: int = 0
    """Files."""
    restored: list[str] = field(default_factory=list)
    """What was damaged, and has been replaced by a whole copy."""
    damaged: list[str] = field(default_factory=list)
    """What is damaged, or was removed as such. A path of the workspace, or a hash where dvc.lock has no such file."""


def verify(remote: str | None = None, with_remote: bool = False) -> list[Place]:
    """Read the outputs of dvc.lock in the workspace and DVC's cache; `with_remote`, also what `remote` (None: the
    default) has of these.

    What is damaged is removed from the cache; in the workspace DVC takes it for changed from then on. Raises UserError
    outside a DVC repository, and if the remote can't be read or written.
    """
    with _repository() as repo:
        lock = Path("dvc.lock")
        made = (
            dvc_files.outputs(dvc_files.parse_lock(lock.read_text(encoding="utf-8"), "workspace"))
            if lock.exists()
            else {}
        )
        cache = repo.cache.local
        objects = {md5: md5 for md5 in cache.all() if _OBJECT.fullmatch(md5)}
        names = _names(cache, made)
        places = [_workspace(made, cache), _cache(cache, {md5: names.get(md5, md5) for md5 in objects})]
        if with_remote:
            with _reachable(remote):
                there = repo.cloud.get_remote(remote)
                places.append(_remote(f"remote {there.name}", there.odb, cache, objects | names))
    return places


def _names(cache: Any, made: Mapping[str, str]) -> dict[str, str]:
    """Hash -> path of each file and folder that dvc.lock has."""
    names = {md5: path for path, md5 in made.items()}
    for path, md5 in made.items():
        names |= {one: f"{path}/{file}" for file, one in (dvc_files.listing(cache, md5) or {}).items()}
    return names


def _workspace(made: Mapping[str, str], cache: Any) -> Place:
    place = Place("workspace")
    for path, md5 in made.items():
        if Path(path).exists():
            place.read += sum(file.is_file() for file in (Path(path), *Path(path).rglob("*")))
            found = dvc_files.differing(Path(path), md5, cache)
            for file in found:
                if file.exists():
                    os.utime(file)  # DVC hashes again what has another age
            place.damaged += [file.as_posix() for file in found]
    return place


def _cache(cache: Any, objects: Mapping[str, str]) -> Place:
    place = Place("cache", read=len(objects))
    for md5 in dvc_files.drop_damaged(cache, objects):
        file = Path(objects[md5])
        whole = file.is_file() and dvc_files.hash_of(file) == md5
        if whole:
            cache.add(str(file.resolve()), cache.fs, md5)
        (place.restored if whole else place.damaged).append(objects[md5])
    return place


def _remote(name: str, odb: Any, cache: Any, objects: Mapping[str, str]) -> Place:
    there = list(odb.list_oids_exists(list(objects)))
    place = Place(name, remote=True, read=len(there))
    for md5 in there:
        path = odb.oid_to_path(md5)
        if _md5(odb.fs, path) != md5.removesuffix(dvc_files.FOLDER):
            in_cache = cache.exists(md5)
            if in_cache:
                odb.fs.put_file(cache.oid_to_path(md5), path)
            (place.restored if in_cache else place.damaged).append(objects[md5])
    return place


def _md5(fs: Any, path: str) -> str:
    """Of a file in the remote, as it comes; `hashlib.file_digest` wants more of a file than each kind of remote has."""
    digest = hashlib.md5(usedforsecurity=False)
    with fs.open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _repository() -> Iterator[Any]:
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        repo = Repo()
    except NotDvcRepoError:
        raise UserError("no DVC repository here; go to the one whose files you want to verify") from None
    with repo:
        yield repo


@contextmanager
def _reachable(name: str | None) -> Iterator[None]:
    """Turn what a remote refuses, each kind by exceptions of its own, into a UserError."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the remote {name or 'of DVC'}: {said}; fix that, and verify again") from error
