"""Mistakes with registered models and names of checkpoints."""

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from helpers import ROOT, commit, dvc
from helpers import command as run

from faults import Bench, Fault


def named(what: str, command: str, sentence: str, prepare: Callable[[Path], object]) -> Fault:
    """A folder that `prepare` made a repository, or didn't, and a subcommand of `finetune` that looks up a name there."""

    def cause(bench: Bench) -> str:
        prepare(bench.folder)
        done = run(
            "python", "-m", "finetune.commands.main", *shlex.split(command), cwd=bench.folder, PYTHONPATH=str(ROOT)
        )
        assert done.returncode == 1, done.stdout
        return done.stderr.strip().removeprefix("error: ")

    return Fault("registry", what, sentence, cause)


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


FAULTS: list[Fault] = [
    named(
        "`register` outside a Git repository",
        "register haiku",
        "…: experiments, revisions and registered models are found in a Git repository that uses DVC and has a commit; "
        "go to it",
        nothing,
    ),
    named(
        "a model's name with a space",
        "register 'my haiku'",
        "'my haiku': can't be a model's name; letters, digits, - _ and / make one, as in haiku",
        nothing,
    ),
    named(
        "`--version 2`",
        "register haiku --version 2",
        "--version 2: is no version; write v2, or v2.0.0",
        nothing,
    ),
    named(
        "`--from` with a name that nothing has",
        "register haiku --from nobody",
        "'nobody': no checkpoint has this name: no folder, experiment or revision; `dvc exp list --all-commits` lists "
        "the experiments, `gto show` the registered models",
        repository,
    ),
    named(
        "a commit from before the pipeline ran",
        "register haiku",
        "HEAD: no dvc.lock in that commit; run the pipeline there, and commit dvc.lock",
        repository,
    ),
    named(
        "a dvc.lock that was cut short",
        "register haiku",
        "HEAD: its dvc.lock is cut short or damaged; bring the committed one back (`git checkout dvc.lock`), then run "
        "`dvc repro`",
        cut_lock,
    ),
    named(
        "a version that isn't registered, or not fetched",
        "push haiku@v2",
        "haiku@v2: not in the registry: no haiku is registered here; `git fetch --tags` brings what others have "
        "registered",
        repository,
    ),
    named(
        "`push` of a name without a version",
        "push haiku",
        "haiku: is no registered version; name one as in haiku@v1, or make one: `finetune register`",
        repository,
    ),
]
