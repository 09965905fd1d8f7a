"""DVC's cache, to which `dvc repro` copies what a stage has made."""

import os
from pathlib import Path


def folder() -> Path | None:
    """Where it lies, from the folder at hand; None if it isn't DVC that runs this stage."""
    if "DVC_STAGE" not in os.environ:
        return None
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            return Path(os.path.relpath(repo.cache.local.path))
    except NotDvcRepoError:  # a stage's script that a stage of another repository calls
        return None
