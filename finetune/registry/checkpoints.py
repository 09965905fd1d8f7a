"""Fine-tuned models by name: the workspace's, a folder, a registered version, a DVC experiment, a Git revision."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import places
from finetune.errors import UserError, quoted
from finetune.experiments import dvc_lock, revisions
from finetune.files import read_json
from finetune.models.base import Base
from finetune.models.checkpoint import Checkpoint
from finetune.registry import fetched, versions

WORKSPACE = "workspace"


@dataclass(frozen=True)
class Found:
    """A checkpoint on this machine, found by a name."""

    name: str
    """As the user wrote it."""
    checkpoint: Checkpoint
    base_folder: Path | None
    """Where the base model of an adapter lies; None: where the facts say, or it needs none."""

    @property
    def folder(self) -> Path:
        """The checkpoint's folder."""
        return self.checkpoint.folder

    def base(self) -> Base | None:
        """The base that its adapter goes over (`Checkpoint.base`)."""
        return self.checkpoint.base(self.base_folder)


def find(name: str) -> Found:
    """The checkpoint called `name`, fetched by DVC if need be, with its base model if the workspace has another.

    A name is, in this order: `workspace` (models/tuned); a folder that holds a checkpoint; a registered version
    (`haiku@v2`, `haiku@latest`) or stage (`haiku#production`); a DVC experiment, those of HEAD first; a Git revision.

    Nothing is checked out over the user's files. Raises UserError for a name that means none of these, an experiment
    that failed or hasn't run, one whose files are neither here nor in the remote, and weights that aren't those of the run.
    """
    folder = places.TUNED if name == WORKSPACE else _folder(name)
    if folder is not None:
        checkpoint = Checkpoint.read(folder)
        if name == WORKSPACE:
            _check_noted(checkpoint)
        return Found(name, checkpoint, None)
    with revisions.repository(name) as repo:
        return of_commit(repo, commit_of(repo, name), name)


def commit_of(repo: Any, name: str) -> str:
    """The Git commit of the registered version, experiment or revision called `name`, in this order."""
    from scmrepo.exceptions import SCMError

    version = versions.named(repo, name)
    if version:
        return version.commit
    experiment = revisions.the_one(name, revisions.experiments(repo))
    if experiment:
        return experiment.revision
    try:
        if name.strip():  # which Git takes for HEAD
            return repo.scm.resolve_rev(f"{name}^{{commit}}")
    except (SCMError, ValueError):
        revisions.check_ended(name)
    raise UserError(
        f"{quoted(name)}: no checkpoint has this name: no folder, experiment or revision; `dvc exp list --all-commits` "
        f"lists the experiments, `gto show` the registered models"
    )


def of_commit(repo: Any, commit: str, name: str, refresh: bool = False) -> Found:
    """The checkpoint that dvc.lock of `commit` names, with its base model.

    `refresh`: all of it comes from DVC's cache or the remote once more, so that it is certain to be there.
    """
    locked = fetched.lock(repo, commit, name)
    checkpoint = Checkpoint.read(fetched.output(repo, commit, locked, places.TUNED, name, refresh))
    base = base_of(locked, checkpoint)
    if base is None or (not refresh and _holds(base, checkpoint)):
        return Found(name, checkpoint, None)
    return Found(name, checkpoint, fetched.output(repo, commit, locked, base, name, refresh))


def base_of(locked: dict, checkpoint: Checkpoint) -> Path | None:
    """The pipeline's folder of the base model below `checkpoint`; None where it needs none, or has one from outside
    the pipeline (`stages/train.py --model_name`)."""
    base = checkpoint.base_folder
    made_there = dvc_lock.has_output(locked, base.as_posix())
    return base if checkpoint.method.adapters and made_there else None


def _folder(name: str) -> Path | None:
    """The folder that the user means by `name`: one that holds facts of a model, or a path that can be nothing else."""
    try:
        path = Path(name).expanduser()
        holds = (path / places.FACTS).is_file()
        return path if holds or (path.exists() and (path.is_absolute() or len(path.parts) > 1)) else None
    except (OSError, ValueError, RuntimeError):  # what is no path: too long, a null byte, the home of nobody
        return None


def _check_noted(checkpoint: Checkpoint) -> None:
    """Raise UserError if the weights in models/tuned aren't those that the run has recorded with its costs."""
    noted = places.METRICS / "train.facts.json"
    if noted.exists() and read_json(noted).get("weights") not in (None, checkpoint.fingerprint):
        raise UserError(
            f"{WORKSPACE}: {places.TUNED} hasn't the weights that {noted} speaks of (damaged, or of another commit); "
            f"`finetune verify` says which files are damaged, and --ckpt {places.TUNED} asks it all the same"
        )


def _holds(base: Path, checkpoint: Checkpoint) -> bool:
    """Whether the workspace's folder `base` has the weights that the adapter was trained over."""
    return (base / "config.json").exists() and checkpoint.base_fingerprint in (None, Base(base).fingerprint)
