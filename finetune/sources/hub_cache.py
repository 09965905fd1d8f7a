"""huggingface_hub's cache: repositories that earlier downloads left there, and large files put there by resumable downloads.

huggingface_hub (2.4) resumes a download only within one process, and over Xet not at all: it deletes a partial file when
it fails. So large files are brought into its cache from here, over plain HTTP, under the names that it looks for.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from huggingface_hub import constants

from finetune.files import write_text
from finetune.sources.catalogue import DATA_SUFFIXES, HubRepo
from finetune.sources.contents import TAKEN, useful_files

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_NEEDED: dict[str, list[tuple[str, ...]]] = {
    "model": [TAKEN],
    "data": [tuple(f"*[tT][rR][aA][iI][nN]*{end}" for end in DATA_SUFFIXES), DATA_SUFFIXES],
}
"""Endings of names. All the repository's files with one of the first must be there; of the second, if none has those."""
_LEFT_OUT = {"model": ["*/*", ".*", "*.bin.index.json"], "data": ["*dataset_info*"]}

_WAITS = (1, 4, 16)
"""Seconds before each further try, unless the Hub says how long to wait."""
_LONGEST_WAIT = 60
_SHA256 = re.compile(r"[0-9a-f]{64}")

Answer = TypeVar("Answer")


def repo_type(kind: str) -> str:
    """The Hub's word for `kind`, which is 'model' or 'data'."""
    return "model" if kind == "model" else "dataset"


def blob(kind: str, repo_id: str, digest: str) -> Path:
    """Where the cache keeps the file with that hash."""
    return _repository(kind, repo_id) / "blobs" / digest


def _repository(kind: str, repo_id: str) -> Path:
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type=repo_type(kind))


def note_commit(kind: str, source: HubRepo, commit: str) -> None:
    """Note which commit a branch or tag stands for, as huggingface_hub does when it resolves one."""
    if source.revision != commit:
        write_text(_repository(kind, source.repo_id) / "refs" / source.revision, commit)


def snapshot(kind: str, source: HubRepo) -> tuple[Path, list[str]]:
    """The folder of `source` in the cache, whose name is the commit, and the useful files in it.

    Raises huggingface_hub's LocalEntryNotFoundError if it isn't there, or is known to be incomplete.
    """
    from huggingface_hub import snapshot_download

    folder, useful = Path(), list[str]()
    for ends in _NEEDED[kind]:
        if not useful:
            folder = Path(
                snapshot_download(
                    source.repo_id,
                    revision=source.revision,
                    repo_type=repo_type(kind),
                    local_files_only=True,
                    allow_patterns=[f"*{end}" for end in ends],
                    ignore_patterns=_LEFT_OUT[kind],
                )
            )
            held = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
            useful = useful_files(kind, held)
    return folder, useful


def bring(kind: str, repo_id: str, commit: str, files: Iterable[RepoSibling]) -> None:
    """Put those of `files` into the cache that the Hub keeps apart from Git: the large ones, known by their SHA-256.

    Files that the Hub sends only over Xet are left to huggingface_hub.
    """
    from huggingface_hub import hf_hub_url

    for file in files:
        # The Hub isn't trusted, and what it calls a hash becomes a file's name.
        if file.lfs and _SHA256.fullmatch(file.lfs.sha256) and file.lfs.size <= constants.MAX_HTTP_DOWNLOAD_SIZE:
            url = hf_hub_url(repo_id, file.rfilename, repo_type=repo_type(kind), revision=commit)
            _bring(url, file.rfilename, file.lfs.size, blob(kind, repo_id, file.lfs.sha256))


def _bring(url: str, name: str, size: int, target: Path) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    part = target.with_name(f"{target.name}.incomplete")
    lock = (
        target.parents[2] / ".locks" / target.parents[1].name / f"{target.name}.lock"
    )  # the one that huggingface_hub takes
    for folder in (target.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)

    def get() -> None:
        with part.open("ab") as file:
            if file.tell() > size:
                file.truncate(0)
            had = part.stat().st_size
            if had:
                print(f"{name}: resumes after {had / 1e6:.1f} of {size / 1e6:.1f} MB", flush=True)
            http_get(
                url, file, resume_size=had, headers=build_hf_headers(), expected_size=size, displayed_filename=name
            )

    with WeakFileLock(lock):
        if not target.exists():
            patiently(get)
            part.replace(target)


def patiently(ask: Callable[[], Answer]) -> Answer:
    """Call `ask`, again if the Hub has a fault (5xx) or limits the rate (429), and return what it returns.

    Raises what `ask` raises, the last of such errors.
    """
    from huggingface_hub.errors import HfHubHTTPError

    for wait in _WAITS:
        try:
            return ask()
        except HfHubHTTPError as error:
            if not is_temporary(error):
                raise
            told = error.response.headers.get("Retry-After", "")
            time.sleep(min(int(told) if told.isdecimal() else wait, _LONGEST_WAIT))
    return ask()


def is_temporary(error: Exception) -> bool:
    """Whether `error` is the Hub's answer that it can't serve now."""
    status = status_of(error)
    return status is not None and (status == 429 or status >= 500)


def status_of(error: Exception) -> int | None:
    """The HTTP status of the answer that caused `error`, if an answer did."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
