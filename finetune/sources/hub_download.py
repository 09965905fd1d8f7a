"""Downloads from the Hugging Face Hub that outlast a bad line: what the Hub refuses for a moment is asked for again, and a
large file that was cut goes on from there, in this run or in the next.

huggingface_hub takes up a cut file within one process only, and not at all over Xet. So large files are put into its cache
from here, over plain HTTP; it finds them there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from huggingface_hub import constants

from finetune.sources import hub_cache

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_WAITS = (1, 4, 16)
"""Seconds before each further try, where the Hub names no time of its own."""
_LONGEST_WAIT = 60
_SHA256 = re.compile(r"[0-9a-f]{64}")

Answer = TypeVar("Answer")


def patiently(ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns, which is tried again while the Hub has a fault of its own (5xx) or is asked too much (429).

    Raises what `ask` raises, of these errors the last.
    """
    from huggingface_hub.errors import HfHubHTTPError

    for wait in _WAITS:
        try:
            return ask()
        except HfHubHTTPError as error:
            if not passes(error):
                raise
            told = error.response.headers.get("Retry-After", "")
            time.sleep(min(int(told) if told.isdecimal() else wait, _LONGEST_WAIT))
    return ask()


def passes(error: Exception) -> bool:
    """Whether `error` is the Hub's answer that it can't serve now."""
    status = status_of(error)
    return status is not None and (status == 429 or status >= 500)


def status_of(error: Exception) -> int | None:
    """The HTTP status that `error` is about, if it is about one."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def blob(kind: str, repo_id: str, digest: str) -> Path:
    """Where huggingface_hub's cache keeps the file with that hash."""
    return hub_cache.repository(kind, repo_id) / "blobs" / digest


def bring(kind: str, repo_id: str, commit: str, files: Iterable[RepoSibling]) -> None:
    """Put those of `files` into the cache that the Hub keeps apart from Git: the large ones, known by their SHA-256. Those
    that it sends over Xet alone are left to huggingface_hub."""
    from huggingface_hub import hf_hub_url

    for file in files:
        # The Hub isn't trusted: what it calls a hash becomes a file's name.
        if file.lfs and _SHA256.fullmatch(file.lfs.sha256) and file.lfs.size <= constants.MAX_HTTP_DOWNLOAD_SIZE:
            target = blob(kind, repo_id, file.lfs.sha256)
            url = hf_hub_url(repo_id, file.rfilename, repo_type=hub_cache.repo_type(kind), revision=commit)
            _bring(url, file.rfilename, file.lfs.size, target)


def _bring(url: str, name: str, size: int, target: Path) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    part = target.with_name(f"{target.name}.incomplete")
    lock = target.parents[2] / ".locks" / target.parents[1].name / f"{target.name}.lock"  # huggingface_hub's own
    for folder in (target.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)

    def get() -> None:
        with part.open("ab") as file:
            if file.tell() > size:
                file.truncate(0)
            had = part.stat().st_size
            if had:
                print(f"{name}: goes on after {had / 1e6:.1f} of {size / 1e6:.1f} MB", flush=True)
            http_get(
                url, file, resume_size=had, headers=build_hf_headers(), expected_size=size, displayed_filename=name
            )

    with WeakFileLock(lock):
        if not target.exists():
            patiently(get)
            part.replace(target)
