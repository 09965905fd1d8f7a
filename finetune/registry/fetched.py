"""What a Git commit's dvc.lock names, fetched by DVC without touching the user's files."""

import sys
from pathlib import Path, PurePosixPath
from typing import Any

from finetune import dvc_files
from finetune.errors import UserError
from finetune.experiments import dvc_lock
from finetune.files import whole_folder

FETCHED = Path(".dvc/tmp/checkpoints")
"""A folder for each hash. Safe to delete: what is needed again is fetched again."""


def read(repo: Any, commit: str, file: str, name: str) -> str:
    """The text of `file`, kept by Git, as it is in `commit`. Raises UserError, about `name`, if it isn't there."""
    try:
        return repo.scm.get_fs(commit).read_text(in_git(repo, file), encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{name}: no {file} in that commit; run the pipeline there, and commit {file}") from None


def in_git(repo: Any, file: str) -> str:
    """The path of `file` from the root of the Git repository, in which DVC's may be a folder."""
    return (Path(repo.root_dir).relative_to(repo.scm.root_dir) / file).as_posix()


def lock(repo: Any, commit: str, name: str) -> dict:
    """dvc.lock as it is in `commit`. Raises UserError, about `name`, if it isn't there, or isn't whole."""
    return dvc_files.parse_lock(read(repo, commit, "dvc.lock", name), name)


def output(repo: Any, commit: str, locked: dict, path: Path, name: str, refresh: bool = False) -> Path:
    """The folder `path` as `locked`, dvc.lock of `commit`, has it: from an earlier call unless `refresh`, DVC's cache or
    the remote. Each is used only if it is whole.

    Raises UserError, about `name`, if no stage of it made `path`, or neither has it, or has it whole.
    """
    if not dvc_lock.has_output(locked, path.as_posix()):
        raise UserError(f"{name}: its dvc.lock has no {path}; run `dvc repro` there, and commit dvc.lock")
    md5 = dvc_lock.output_hash(locked, path.as_posix())
    target = FETCHED / md5.removesuffix(dvc_files.FOLDER)
    if refresh or not target.exists() or dvc_files.differing(target / path.name, md5, repo.cache.local):
        if not refresh:
            print(f"fetching {path} of {name}", file=sys.stderr)
        _drop_damaged(repo.cache.local, path, md5)
        with whole_folder(target) as draft:
            _fetch(repo, commit, path, draft / path.name, name)
            _check_whole(repo, path, draft / path.name, md5, name)
    return target / path.name


def _drop_damaged(cache: Any, path: Path, md5: str) -> None:
    """Remove from DVC's cache what is damaged of `path`, the folder of hash `md5`, so that the remote's is taken."""
    dropped = dvc_files.drop_damaged(cache, [md5])
    dropped += dvc_files.drop_damaged(cache, (dvc_files.listing(cache, md5) or {}).values())
    if dropped:
        print(
            f"{path}: {len(dropped)} of its files were damaged in DVC's cache, and are removed there", file=sys.stderr
        )


def _check_whole(repo: Any, path: Path, copy: Path, md5: str, name: str) -> None:
    remote = [repo.cloud.get_remote_odb()] if has_remote(repo) else []
    damaged = [path / file.relative_to(copy) for file in dvc_files.differing(copy, md5, repo.cache.local, *remote)]
    if damaged:
        raise UserError(
            f"{name}: {', '.join(file.as_posix() for file in damaged)} of it is damaged in the remote; "
            f"`finetune verify --remote` in a clone that has it whole restores it"
        )


def _fetch(repo: Any, commit: str, path: Path, target: Path, name: str) -> None:
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexDirError

    with repo.switch(commit):
        try:
            repo.dvcfs.get(str(PurePosixPath("/") / path.as_posix()), str(target))
        except (DvcException, DataIndexDirError, FileNotFoundError):
            raise UserError(f"{name}: no {path} of it, {_searched(repo)}") from None
        except RecursionError:  # DVC's, over a listing with `..` in it
            raise UserError(_doctored(path, name)) from None


def _doctored(path: Path, name: str) -> str:
    return (
        f"{name}: the {path} that DVC has brought is another than its dvc.lock names: the remote, or DVC's cache, was "
        f"changed; run it again, or `dvc push` it again where it ran"
    )


def _searched(repo: Any) -> str:
    if has_remote(repo):
        return "here or in the remote; run it again, or `dvc push` where it ran"
    return "and DVC has no remote to fetch it from; name the one it was pushed to: `dvc remote add --default NAME URL`"


def has_remote(repo: Any) -> bool:
    """Whether DVC has a default remote."""
    from dvc.config import NoRemoteError

    try:
        repo.cloud.get_remote()
    except NoRemoteError:
        return False
    return True
