"""What a name means to DVC and Git: an experiment, or a revision."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from finetune.errors import UserError, quoted


@dataclass(frozen=True)
class Experiment:
    """A DVC experiment that has run."""

    revision: str
    """Git commit that holds its results."""
    started_from: str
    """Git commit that it started from, short."""


@contextmanager
def repository(name: str) -> Iterator[Any]:
    """The `dvc.repo.Repo` at hand, in which `name` is sought, with today's remotes for all revisions.

    Raises UserError if there is none, or none in Git with a commit.
    """
    from dvc.config import Config
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo
    from dvc.scm import NoSCM
    from scmrepo.exceptions import SCMError

    try:
        # Else DVC takes each revision's own .dvc/config: a remote that has moved since is sought at its old address, and
        # one with a relative address, as ours by default, in the root of the disk (DVC 3.67).
        repo = Repo(config=Config.from_cwd())
        committed = not isinstance(repo.scm, NoSCM) and repo.scm.get_rev()
    except (NotDvcRepoError, SCMError):
        committed = False
    if not committed:
        raise UserError(
            f"{quoted(name)}: experiments, revisions and registered models are found in a Git repository that uses DVC and "
            f"has a commit; go to it"
        )
    with repo:
        yield repo


def experiments(repo: Any) -> dict[str, list[Experiment]]:
    """All experiments by name; one of the commit at hand hides its namesakes."""
    here = repo.scm.get_rev()
    known: dict[str, list[Experiment]] = {}
    of_here: dict[str, list[Experiment]] = {}
    for commit, found in repo.experiments.ls(all_commits=True).items():
        for name, revision in found:
            # Experiments outlive commits: a race that is run again has the same names, and HEAD's are meant.
            group = of_here if commit == here else known
            group.setdefault(name, []).append(Experiment(revision, commit[:7]))
    return known | of_here


def the_one(name: str, known: Mapping[str, list[Experiment]]) -> Experiment | None:
    """The experiment called `name`; None if there is none. Raises UserError if two commits have one."""
    found = known.get(name, [])
    if len(found) > 1:
        raise UserError(
            f"{name}: two commits have an experiment of this name, {found[0].started_from} and {found[1].started_from}; "
            f"remove one: `dvc exp remove {name} --rev COMMIT`"
        )
    return found[0] if found else None


def check_ended(name: str) -> None:
    """Raise UserError if `name` is an experiment in DVC's queue, or one that failed."""
    import dvc.api

    states = {row["Experiment"]: row["State"] for row in dvc.api.exp_show()}
    if states.get(name) == "Failed":
        raise UserError(f"{name}: its run failed; `dvc queue logs {name}` says why")
    if states.get(name) in ("Queued", "Running"):
        raise UserError(f"{name}: has not ended yet; `dvc queue status` shows where it is")
