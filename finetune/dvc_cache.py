"""DVC's cache, to which `dvc repro` copies what a stage has made."""

import os
from pathlib import Path


def folder() -> Path | None:
    """Where it lies; None if it isn't DVC that runs this stage."""
    if "DVC_STAGE" not in os.environ:
        return None
    from dvc.repo import Repo

    with Repo() as repo:
        return Path(repo.cache.local.path)
