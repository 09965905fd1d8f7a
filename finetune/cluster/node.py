"""One trial on the machine that it was given to: a clone of its own, `dvc exp run` in it, the results pushed."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune import files
from finetune.cluster import process
from finetune.cluster.trial import Trial
from finetune.errors import UserError
from finetune.resume.store import FOLDER as SNAPSHOTS

FOLDER = "~/.cache/finetune/trials"
"""On each machine: a clone for each trial that has not ended, and the DVC cache that they share."""

RUN_FAILED = "dvc exp run failed: "
"""How the reason begins where the trial itself is to blame, and not a machine, a network or a remote."""


def run(trial: Trial, folder: str = FOLDER) -> str:
    """Run the trial within `folder` of this machine; returns why it failed, or nothing.

    Whatever ended an earlier attempt here, the trial resumes from what that has left: stages that ended, snapshots, what
    was fetched. An attempt that is still at work is waited for.
    """
    home = Path(folder).expanduser().absolute()
    home.mkdir(parents=True, exist_ok=True)
    clone = home / f"{trial.name}-{trial.baseline[:12]}"
    with _alone(clone) as lock:
        try:
            # Cloned again: a kill leaves Git and DVC in states of which few are known, and a clone is small.
            with files.whole_folder(clone, keep=SNAPSHOTS.as_posix()) as draft:
                _clone(trial, draft, home / "cache")
                (draft / SNAPSHOTS.parent).mkdir(exist_ok=True)
            if not _made(trial, clone):
                _run(trial, clone, lock)
                _push(trial, clone, lock)
        except (process.CommandFailed, UserError) as error:
            return str(error)
        shutil.rmtree(clone, ignore_errors=True)  # the experiment has arrived: what can't be removed is no failure
    return ""


@contextmanager
def _alone(clone: Path) -> Iterator[list[int]]:
    """Hold the lock of `clone`; yield its handle, by which what is started in it may hold it as well.

    Where a machine's agent is killed, the command that it has started may live on. Then that one is waited for. Nothing
    is held where the system, or a network disk, knows no locks.
    """
    try:
        import fcntl
    except ImportError:
        yield []
        return
    with clone.with_name(f".{clone.name}.lock").open("a") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield [file.fileno()]


def _clone(trial: Trial, folder: Path, cache: Path) -> None:
    """Make `folder` the trial's repository: its commit and changes, and `cache` as DVC's cache."""

    def git(*arguments: str) -> None:
        process.run("git", *arguments, cwd=folder)

    git("clone", "--quiet", "--no-checkout", trial.repository, ".")
    git("checkout", "--quiet", "--detach", trial.baseline)
    for key, value in zip(("name", "email"), trial.author, strict=True):
        git("config", f"user.{key}", value)
    process.run(sys.executable, "-m", "dvc", "config", "--quiet", "--local", "cache.dir", str(cache), cwd=folder)
    if trial.changes:
        patch = folder / ".dvc/tmp/changes.patch"
        patch.parent.mkdir(exist_ok=True)
        patch.write_bytes(trial.changes.encode("latin-1"))
        git("apply", "--index", str(patch.relative_to(folder)))


def _made(trial: Trial, clone: Path) -> bool:
    """Whether the Git remote has the experiment: pushed by an attempt that was killed before it could say so.

    Raises UserError if it is another experiment of the same name.
    """
    if not _git(clone, "ls-remote", "origin", trial.ref):
        return False
    process.run("git", "fetch", "--quiet", "origin", trial.ref, cwd=clone)
    if _git(clone, "rev-parse", "FETCH_HEAD:params.yaml") != _git(clone, "rev-parse", ":params.yaml"):
        raise UserError(
            f"the Git remote has an experiment {trial.name} of other params; queue this one under another name, or "
            f"remove that one: `dvc exp remove --git-remote origin {trial.name}`"
        )
    return True


def _git(clone: Path, *arguments: str) -> str:
    """What Git prints."""
    return subprocess.run(["git", *arguments], cwd=clone, capture_output=True, encoding="utf-8").stdout


def _run(trial: Trial, clone: Path, lock: list[int]) -> None:
    # What stages need is fetched when they need it, and nothing for those that don't run.
    flags = ("--pull", "--allow-missing", "--name", trial.name)
    try:
        _dvc(clone, lock, "exp", "run", *flags, *trial.targets)
    except process.CommandFailed as error:
        raise process.CommandFailed(f"{RUN_FAILED}{error}") from None


def _push(trial: Trial, clone: Path, lock: list[int]) -> None:
    """The files first: who sees the experiment finds them."""
    try:
        _dvc(clone, lock, "push")
        _dvc(clone, lock, "exp", "push", "--no-cache", "origin", trial.name)
    except process.CommandFailed as error:
        raise process.CommandFailed(f"its results couldn't be pushed: {error}") from None


def _dvc(clone: Path, lock: list[int], *arguments: str) -> None:
    process.run(sys.executable, "-m", "dvc", *arguments, cwd=clone, keep_open=lock)
