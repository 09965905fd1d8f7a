"""A trial: one DVC experiment, with all that another machine needs to run it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune.errors import UserError, quoted
from finetune.files import read_json, write_json


@dataclass(frozen=True)
class Trial:
    """A queued experiment. A machine with Git, this package and access to both remotes can run it."""

    name: str
    repository: str
    """Address of the Git remote."""
    baseline: str
    """The commit that it starts from, which the Git remote has."""
    changes: str
    """The changes on top of that commit, params.yaml above all: a patch, each byte a character (latin-1)."""
    targets: tuple[str, ...]
    """Stages to run, with those before them; none: all."""
    author: tuple[str, str]
    """Whose experiment it is: name and e-mail address, as Git has them."""

    @property
    def ref(self) -> str:
        """Where DVC keeps the finished experiment, in every Git repository that has it."""
        return f"refs/exps/{self.baseline[:2]}/{self.baseline[2:]}/{self.name}"


@dataclass(frozen=True)
class Needs:
    """What one trial asks of its machine."""

    cpus: int
    gpus: int
    folder: str
    """Where the machine keeps its clones and its cache; ~ is the home of the user that runs the trial."""

    def __str__(self) -> str:
        return f"{self.cpus} CPU{'s' * (self.cpus != 1)} and {self.gpus} GPU{'s' * (self.gpus != 1)}"


def write(path: Path, trials: Sequence[Trial]) -> None:
    """Write the `trials` as JSON."""
    write_json(path, {"trials": [asdict(trial) for trial in trials]})


def read(path: Path) -> list[Trial]:
    """The trials that `write` wrote. Raises UserError if it is no such file."""
    try:
        rows = read_json(path)["trials"]
        return [Trial(**row | {"targets": tuple(row["targets"]), "author": tuple(row["author"])}) for row in rows]
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `finetune cluster write` makes such a file") from None
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{path}: is no list of trials; `finetune cluster write` makes one") from None


def at(path: Path, index: int) -> Trial:
    """The trial at `index`, from 0, in the file `path`. Raises UserError if there is none."""
    trials = read(path)
    if index >= len(trials):
        raise UserError(f"{path}: has no trial {quoted(index)}; its {len(trials)} are numbered from 0")
    return trials[index]
