"""Register a fine-tuned model: a version, and a stage, that others find by name."""

import filecmp
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import dvc_files, places, yaml_file
from finetune.errors import UserError, quoted
from finetune.experiments import dvc_lock, revisions
from finetune.registry import annotation, checkpoints, fetched, versions
from finetune.registry.versions import Version

HEAD = "HEAD"


@dataclass(frozen=True)
class Registered:
    """What `register` did."""

    version: Version
    new: bool
    """Whether it is registered only now."""
    replaced: Version | None
    """The version that had the stage before."""


def register(model: str, source: str, version: str | None = None, stage: str | None = None) -> Registered:
    """Register models/tuned of `source` (an experiment or revision) as `version` (default: the next) of `model`.

    A model that is registered already may be given a stage. Raises UserError, before anything is changed, if the
    name or version can't be had, the run has not ended well, its files can't be found, or HEAD's aren't the workspace's.
    """
    from gto.constants import check_string_is_valid

    if not check_string_is_valid(model):
        raise UserError(f"{quoted(model)}: can't be a model's name; letters, digits, - _ and / make one, as in haiku")
    wanted = versions.full(version) if version else None
    with revisions.repository(source) as repo:
        commit = checkpoints.commit_of(repo, source)
        locked = _checked(repo, commit, source)
        known = versions.of(repo, model)
        same = next((one for one in known if _tuned(fetched.lock(repo, one.commit, one.name)) == _tuned(locked)), None)
        if same and (not stage or wanted not in (None, same.version)):
            raise UserError(f"{source}: is {same.name} already; --stage gives that a stage")
        taken = versions.of(repo, model, withdrawn=True)
        if not same and wanted in [one.version for one in taken]:
            raise UserError(f"{model}@{version}: is, or was, another model; leave --version out for the next one")
        _check_identity()
        registered = same or _tag(repo, model, wanted or versions.next_after(taken), commit)
        before = _promote(repo, registered, stage) if stage else None
        return Registered(registered, not same, before)


def _checked(repo: Any, commit: str, source: str) -> dict:
    """dvc.lock of `commit`, whose stages have seen each other's outputs, and whose model can be had."""
    locked = fetched.lock(repo, commit, source)
    here = Path("dvc.lock")
    if (
        source == HEAD
        and here.exists()
        and _tuned(dvc_files.parse_lock(here.read_text(encoding="utf-8"), "workspace")) != _tuned(locked)
    ):
        raise UserError(
            "dvc.lock: its models/tuned isn't committed; commit it first, or name the experiment that made it: --from NAME"
        )
    dvc_lock.check_consistent(locked, yaml_file.parse(fetched.read(repo, commit, "params.yaml", source)), source)
    folder = checkpoints.of_commit(repo, commit, source, refresh=True).folder
    if source == HEAD and places.TUNED.exists() and not _holds_all(places.TUNED, folder):
        raise UserError(
            "models/tuned: isn't the one that dvc.lock has; `dvc commit train` takes it in, then commit dvc.lock, or "
            "`dvc checkout models/tuned` brings that one back"
        )
    return locked


def _holds_all(folder: Path, other: Path) -> bool:
    """Whether `folder` has the files of `other`, byte for byte."""
    names = [path.relative_to(other).as_posix() for path in other.rglob("*") if path.is_file()]
    return filecmp.cmpfiles(folder, other, names, shallow=False)[0] == names


def _tuned(locked: dict) -> str | None:
    path = places.TUNED.as_posix()
    return dvc_lock.output_hash(locked, path) if dvc_lock.has_output(locked, path) else None


def _check_identity() -> None:
    """Tags have an author."""
    done = subprocess.run(["git", "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT"], capture_output=True)
    if done.returncode:
        raise UserError(
            "git: doesn't know who registers; say it once: `git config user.name YOU`, `git config user.email YOU@HOST`"
        )


def _tag(repo: Any, model: str, version: str, commit: str) -> Version:
    import gto.api
    from gto.exceptions import GTOException

    annotated = annotation.annotated(repo, commit, model)
    try:
        gto.api.register(repo.scm, model, annotated, version=version)
    except GTOException as error:  # a commit that had another version of it once
        raise UserError(
            f"{model}@{version}: gto refuses it ({error}); `gto history {model}` has what there was"
        ) from None
    return Version(model, version, annotated)


def _promote(repo: Any, version: Version, stage: str) -> Version | None:
    """Give `version` the stage; returns which had it before, None if none or itself."""
    import gto.api

    before = versions.in_stage(repo, version.model, stage)
    if before == version:
        return None
    # `force`: a version that had the stage before another one has never lost it, by gto's books.
    gto.api.assign(repo.scm, version.model, stage, version=version.version, force=True)
    return before
