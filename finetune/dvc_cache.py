"""DVC's cache, to which `dvc repro` copies what a stage has made."""

import os
from pathlib import Path


def folder() -> Path | None:
    """Where it lies, from the folder at hand; None if it isn't DVC that runs this stage."""
    if "DVC_STAGE" not in os.environ:
        return None
    from dvc.repo import Repo

    with Repo() as repo:
        return Path(os.path.relpath(repo.cache.local.path))
