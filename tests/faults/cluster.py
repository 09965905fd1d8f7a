"""Experiments that can't go to a cluster."""

import atexit
import shutil
import subprocess
import tempfile
from functools import cache, partial
from pathlib import Path

from helpers import GIT, commit, dvc

from faults import Fault, asked

PIPELINE = "stages:\n  train:\n    cmd: cp params.yaml model\n    params: [seed]\n    outs: [model]\n"


@cache
def template() -> Path:
    """A clone with an experiment in its queue, and two remotes that other machines reach: origin.git, and store."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    atexit.register(shutil.rmtree, folder)
    mine = folder / "mine"
    subprocess.run(["git", "init", "--quiet", "--bare", folder / "origin.git"], check=True)
    subprocess.run(["git", "clone", "--quiet", folder / "origin.git", mine], check=True, capture_output=True)
    (mine / "dvc.yaml").write_text(PIPELINE)
    (mine / "params.yaml").write_text("seed: 1\n")
    for step in (["init"], ["remote", "add", "--default", "store", folder / "store"]):
        assert dvc(mine, *step, "--quiet").returncode == 0
    commit(mine, "a pipeline")
    subprocess.run([*GIT, "push", "--quiet", "origin", "HEAD"], cwd=mine, check=True)
    queue(mine)
    return mine


def queue(folder: Path, *flags: str) -> None:
    done = dvc(folder, "exp", "run", "--queue", "-n", "lora-1", "-S", "seed=2", *flags)
    assert done.returncode == 0, done.stderr


def queued(folder: Path) -> None:
    """An experiment that can go to a cluster."""
    shutil.copytree(template(), folder, dirs_exist_ok=True)


def nothing_queued(folder: Path) -> None:
    """The same, its queue empty."""
    queued(folder)
    assert dvc(folder, "queue", "remove", "--all").returncode == 0


def never_pushed(folder: Path) -> None:
    """A commit that the Git remote hasn't."""
    nothing_queued(folder)
    (folder / "params.yaml").write_text("seed: 5\n")
    commit(folder, "another seed")
    queue(folder)


def forced(folder: Path) -> None:
    """A flag of DVC's that a trial wouldn't have."""
    nothing_queued(folder)
    queue(folder, "--force")


def remote_beside_it(folder: Path) -> None:
    """As the repository comes."""
    queued(folder)
    assert dvc(folder, "remote", "modify", "store", "url", folder.parent / "dvc-remote").returncode == 0
    config = folder / ".dvc/config"
    config.write_text(config.read_text().replace(str(folder.parent), "../.."))


def no_dvc_remote(folder: Path) -> None:
    """None at all."""
    queued(folder)
    assert dvc(folder, "remote", "remove", "store").returncode == 0


def token_in_the_address(folder: Path) -> None:
    """Of the Git remote."""
    queued(folder)
    address = "https://me:hf_0123456789abcdef@example.org/repository"
    subprocess.run(["git", "remote", "set-url", "origin", address], cwd=folder, check=True)


def no_git_remote(folder: Path) -> None:
    """None at all."""
    queued(folder)
    subprocess.run(["git", "remote", "remove", "origin"], cwd=folder, check=True)


def unlike(folder: Path) -> None:
    """A file that isn't one of trials."""
    (folder / "trials.json").write_text("[]")


def nothing(folder: Path) -> None:
    """No repository."""


told = partial(asked, "cluster")

FAULTS: list[Fault] = [
    told(
        "`cluster ray` with an empty queue",
        "cluster ray",
        "no experiment … queue … `dvc exp run --queue -n NAME -S",
        nothing_queued,
    ),
    told("`cluster ray`, where the commit was never pushed", "cluster ray", "lora-1: … `git push`", never_pushed),
    told(
        "`cluster slurm`, where the experiment was queued with `--force`",
        "cluster slurm",
        "lora-1 … --force … `dvc queue remove lora-1`",
        forced,
    ),
    told(
        "`cluster ray`, with the DVC remote that the repository comes with",
        "cluster ray",
        "DVC remote store … dvc-remote … `dvc remote modify store url … docs/sharing.md … `git commit .dvc/config`",
        remote_beside_it,
    ),
    told("`cluster ray` without a DVC remote", "cluster ray", "DVC … no remote … docs/sharing.md", no_dvc_remote),
    told(
        "`cluster write`, where the address of the Git remote has a token in it",
        "cluster write trials.json",
        "Git remote origin … token … `git remote set-url`",
        token_in_the_address,
    ),
    told(
        "`cluster write` without a Git remote",
        "cluster write trials.json",
        "Git … no remote … `git remote add origin URL`",
        no_git_remote,
    ),
    told(
        "`cluster trial` with a file of something else",
        "cluster trial trials.json 0",
        "trials.json … `finetune cluster write`",
        unlike,
    ),
    told(
        "`cluster ray --folder work`",
        "cluster ray --folder work",
        "--folder … 'work' … `finetune cluster ray --help`",
        nothing,
    ),
]
