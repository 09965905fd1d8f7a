"""Mistakes with registered models and names of checkpoints."""

import subprocess
from functools import partial
from pathlib import Path

from helpers import commit, dvc

from faults import Fault, asked


def repository(folder: Path) -> None:
    """Git and DVC, and one commit, without a dvc.lock."""
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    assert dvc(folder, "init", "--quiet").returncode == 0
    commit(folder, "settings")


def cut_lock(folder: Path) -> None:
    """The same, with a dvc.lock that was cut short, as a full disk or a kill leaves it."""
    (folder / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  fetch@model:\n    cmd: python -m stages.fetch model\n    outs:\n    - path"
    )
    repository(folder)


def nothing(folder: Path) -> None:
    """No repository."""


named = partial(asked, "registry")

FAULTS: list[Fault] = [
    named("`register` outside a Git repository", "register haiku", "Git repository … DVC … commit", nothing),
    named("a model's name with a space", "register 'my haiku'", "'my haiku': … name … letters … digits", nothing),
    named("`--version 2`", "register haiku --version 2", "--version 2: … v2, … v2.0.0", nothing),
    named(
        "`--from` with a name that nothing has",
        "register haiku --from nobody",
        "'nobody' … `dvc exp list --all-commits` … `gto show`",
        repository,
    ),
    named(
        "a commit from before the pipeline ran", "register haiku", "HEAD: … no dvc.lock … run the pipeline", repository
    ),
    named(
        "a dvc.lock that was cut short",
        "register haiku",
        "HEAD … dvc.lock … `git checkout dvc.lock` … `dvc repro`",
        cut_lock,
    ),
    named(
        "a version that isn't registered, or not fetched",
        "push haiku@v2",
        "haiku@v2: … haiku … `git fetch --tags`",
        repository,
    ),
    named(
        "`push` of a name without a version",
        "push haiku",
        "haiku: … version … haiku@v1 … `finetune register`",
        repository,
    ),
]
