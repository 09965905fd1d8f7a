"""DVC's queue of experiments, as trials for other machines; and their results, brought back."""

import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from finetune.cluster.trial import Trial
from finetune.crash_report import sentence_without_secrets
from finetune.errors import UserError
from finetune.experiments import revisions

GIT_REMOTE = "origin"
_ARGUMENTS = ".dvc/tmp/repro.dat"
"""Where a queued experiment's commit has the arguments of `dvc exp run`."""
_OURS = {"targets", "run_env"}
"""Of these: what a trial takes over, or has otherwise."""


def names() -> set[str]:
    """Of the experiments in DVC's queue."""
    with revisions.repository("cluster") as repo:
        return {entry.name for entry in repo.experiments.celery_queue.iter_queued()}


def queued() -> list[Trial]:
    """The experiments in DVC's queue, in its order.

    Raises UserError if there is none, one can't run elsewhere, or another machine couldn't reach what it needs.
    """
    with revisions.repository("cluster") as repo:
        if repo.root_dir != repo.scm.root_dir:
            raise UserError(f"{repo.root_dir}: lies within another Git repository; give it one of its own")
        entries = list(repo.experiments.celery_queue.iter_queued())
        if not entries:
            raise UserError("no experiment is queued; queue some: `dvc exp run --queue -n NAME -S …`")
        _check_dvc_remote(repo)
    address, author = _git_remote(), (_git("config", "user.name"), _git("config", "user.email"))
    return [_trial(entry, address, author) for entry in entries]


def _trial(entry: Any, address: str, author: tuple[str, str]) -> Trial:
    arguments = _arguments(entry)
    if others := [key for key, value in arguments.items() if key not in _OURS and value not in (False, "fail")]:
        raise UserError(
            f"{entry.name}: was queued with --{others[0].replace('_', '-')}, which only the DVC queue knows; queue it again "
            f"without (`dvc queue remove {entry.name}`)"
        )
    if not _git("branch", "--remotes", "--contains", entry.baseline_rev):
        raise UserError(
            f"{entry.name}: the Git remote {GIT_REMOTE} hasn't its commit {entry.baseline_rev[:7]}; push it: `git push`"
        )
    patch = _output(
        *("diff-tree", "-p", "--binary", "--full-index", "--no-renames", "--no-ext-diff", "--no-textconv"),
        *(entry.baseline_rev, entry.stash_rev, "--", ".", f":(exclude){_ARGUMENTS}"),
    )
    return Trial(
        name=entry.name,
        repository=address,
        baseline=entry.baseline_rev,
        changes=patch.decode("latin-1"),
        targets=tuple(arguments["targets"] or ()),
        author=author,
    )


def _arguments(entry: Any) -> dict[str, Any]:
    """What `dvc exp run --queue` was given."""
    from dvc.repo.experiments.executor.base import BaseExecutor

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "arguments")
        file.write_bytes(_output("show", f"{entry.stash_rev}:{_ARGUMENTS}"))
        return BaseExecutor.unpack_repro_args(file)[1]


def _check_dvc_remote(repo: Any) -> None:
    from dvc.config_schema import RelPath

    name = repo.config["core"].get("remote")
    url = repo.config["remote"].get(name, {}).get("url")
    if url is None:
        raise UserError("DVC has no remote that other machines could use; name one (docs/sharing.md)")
    if isinstance(url, RelPath):
        raise UserError(
            f"the DVC remote {name} is a folder next to this clone ({url}), and another folder for another clone; name "
            f"one that all machines reach: `dvc remote modify {name} url …` (docs/sharing.md), then `git commit .dvc/config`"
        )


def _git_remote() -> str:
    """Its address, as other machines may use it."""
    address = _git("remote", "get-url", GIT_REMOTE)
    if not address:
        raise UserError(
            f"Git has no remote {GIT_REMOTE} to share experiments by; name one: `git remote add {GIT_REMOTE} URL`"
        )
    if sentence_without_secrets(address) != address and not _ssh(address):
        raise UserError(
            f"the address of the Git remote {GIT_REMOTE} holds a password or token, which would be written into files; take "
            f"it out (`git remote set-url`), and give it to Git's credential helper"
        )
    return str(Path(address).resolve()) if Path(address).exists() else address


def _ssh(address: str) -> bool:
    """Whether what stands before the @ is a user's name alone."""
    return address.startswith("ssh://") and ":" not in address.removeprefix("ssh://").split("@")[0]


def share() -> None:
    """Push what trials need of the workspace's data and models. Raises UserError if a remote can't be written."""
    if subprocess.run(["dvc", "push"], stdout=subprocess.DEVNULL).returncode:
        raise UserError("`dvc push` failed; fix what it reports: the trials take data and models from the DVC remote")
    tried = subprocess.run(["git", "push", "--quiet", "--dry-run", GIT_REMOTE, "HEAD:refs/exps/try"])
    if tried.returncode:
        raise UserError(f"`git push` to {GIT_REMOTE} fails; fix what it reports: finished trials come back through it")


def collect(trials: Sequence[Trial]) -> list[Trial]:
    """Bring the finished ones of `trials` to this clone, without their files, and out of DVC's queue; returns them.

    Raises UserError if the Git remote can't be read.
    """
    there = _refs(trials)
    done = [trial for trial in trials if trial.ref in there]
    if done:
        refs = [f"+{trial.ref}:{trial.ref}" for trial in done]
        if subprocess.run(["git", "fetch", "--quiet", GIT_REMOTE, *refs]).returncode:
            raise UserError(f"`git fetch {GIT_REMOTE}` failed; fix what it reports, then `finetune cluster collect`")
        remove(trial.name for trial in done)
    return done


def remove(names: Iterable[str]) -> None:
    """Take experiments out of DVC's queue."""
    if given := list(names):
        subprocess.run(["dvc", "queue", "remove", *given], stdout=subprocess.DEVNULL)


def _refs(trials: Iterable[Trial]) -> set[str]:
    """The refs of those that the Git remote has."""
    asked = ["git", "ls-remote", GIT_REMOTE, *(trial.ref for trial in trials)]
    done = subprocess.run(asked, stdout=subprocess.PIPE, encoding="utf-8")
    if done.returncode:
        raise UserError(
            f"the Git remote {GIT_REMOTE} can't be read; fix what Git reports, then `finetune cluster collect`"
        )
    return {line.split("\t")[1] for line in done.stdout.splitlines()}


def _output(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], stdout=subprocess.PIPE, check=True).stdout


def _git(*arguments: str) -> str:
    """What Git prints; empty if it refuses."""
    return subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8").stdout.strip()
