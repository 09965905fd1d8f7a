"""Share a registered model: its files go to the DVC remote, then its tags to the Git remote."""

import subprocess
from typing import Any

from finetune import places
from finetune.errors import UserError
from finetune.experiments import revisions
from finetune.registry import checkpoints, fetched, versions

GIT_REMOTE = "origin"


def push(name: str) -> int:
    """Push the registered version called `name`; returns how many files are new in the DVC remote.

    Raises UserError if it isn't registered, has no files to push, or a remote is missing or refuses. Tags are pushed
    last: who sees the version finds its files.
    """
    with revisions.repository(name) as repo:
        version = versions.named(repo, name)
        if version is None:
            raise UserError(
                f"{name}: is no registered version; name one as in haiku@v1, or make one: `finetune register`"
            )
        if not fetched.has_remote(repo):
            raise UserError("DVC has no remote to push to; name one: `dvc remote add --default NAME URL`")
        if not _git("remote", "get-url", GIT_REMOTE):
            raise UserError(
                f"Git has no remote {GIT_REMOTE} to push tags to; name one: `git remote add {GIT_REMOTE} URL`"
            )
        new = _push_files(repo, version)
    # The tags of this version alone, its stages among them: another's files may not have been pushed.
    there = _git("tag", "--points-at", version.commit).split()
    tags = [f"refs/tags/{tag}" for tag in there if tag.startswith((f"{version.model}@", f"{version.model}#"))]
    if subprocess.run(["git", "push", GIT_REMOTE, *tags]).returncode:
        raise UserError(
            f"`git push {GIT_REMOTE}` failed; fix what it reports, and push again: the files are in the DVC remote"
        )
    return new


def _push_files(repo: Any, version: versions.Version) -> int:
    """The adapter and its base, or the whole model: what an answer needs, and nothing of the data."""
    from dvc.exceptions import DvcException

    found = checkpoints.of_commit(repo, version.commit, version.name, refresh=True)
    base = checkpoints.base_of(fetched.lock(repo, version.commit, version.name), found.checkpoint)
    paths = [path.as_posix() for path in (places.TUNED, base) if path]
    try:
        return repo.push(targets=paths, revs=[version.commit], workspace=False)
    except DvcException as error:
        raise UserError(
            f"{version.name}: couldn't be pushed to the DVC remote ({error}); fix that, and push again"
        ) from None


def _git(*arguments: str) -> str:
    """What Git prints; empty if it refuses."""
    return subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8").stdout
