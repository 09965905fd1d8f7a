"""A small search of each method's learning rate and then its epochs, by the validation loss.

Each trial is a DVC experiment of the `train` stage alone: the test set is never looked at.
"""

import math
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass

from finetune.errors import UserError
from finetune.methods import METHODS

MOST_EPOCHS = 2
SEED = 0
"""A seed that the measured runs don't use."""


@dataclass(frozen=True)
class Trial:
    """What one run of the search trains with."""

    method: str
    learning_rate: float
    epochs: int


Losses = dict[Trial, float]
"""Validation loss (nats per response token) of each trial; infinite if the run failed."""


def search(run: Callable[[set[Trial]], None], read: Callable[[], Losses]) -> Losses:
    """Have `run` make trials until each method's best has worse neighbours on both sides.

    First the learning rate, by factors of 2 at one epoch, then epochs at the best rate. Trials that `read` finds
    already made are not made again.
    """
    for neighbours in (_rates, _epochs):
        while missing := {
            trial for method in METHODS for trial in neighbours(best(read(), method)) if trial not in read()
        }:
            run(missing)
            if unread := missing - set(read()):
                raise UserError(f"{min(map(name, unread))}: left no result; `dvc queue status` shows what became of it")
    return read()


def best(losses: Losses, method: str) -> Trial:
    """The trial of `method` with the least validation loss; where to start if there is none."""
    own = {trial: loss for trial, loss in losses.items() if trial.method == method}
    return min(own, key=own.__getitem__, default=Trial(method, METHODS[method].first_learning_rate, 1))


def _rates(trial: Trial) -> list[Trial]:
    return [Trial(trial.method, trial.learning_rate * factor, 1) for factor in (0.5, 1, 2)]


def _epochs(trial: Trial) -> list[Trial]:
    steps = range(max(1, trial.epochs - 1), min(MOST_EPOCHS, trial.epochs + 1) + 1)
    return [Trial(trial.method, trial.learning_rate, epochs) for epochs in steps]


def name(trial: Trial) -> str:
    """The experiment's name."""
    return f"sweep-{trial.method}-{trial.learning_rate:g}-{trial.epochs}"


def run_experiments(trials: set[Trial], jobs: int) -> None:
    """Queue the `trials` as DVC experiments and run the queue. Raises UserError where DVC's queue would hang."""
    check_queue_runs()
    enqueue(trials)
    _dvc("exp", "run", "--run-all", "--jobs", str(jobs), check=False)


def enqueue(trials: set[Trial]) -> None:
    """Queue the `trials` as DVC experiments."""
    for trial in sorted(trials, key=name):
        group = f"methods.{trial.method}"
        settings = {"method": trial.method, "seed": SEED} | {
            f"{group}.learning_rate": trial.learning_rate,
            f"{group}.epochs": trial.epochs,
        }
        flags = [text for key, value in settings.items() for text in ("-S", f"{key}={value}")]
        _dvc("exp", "run", "--queue", "--name", name(trial), *flags, "train")


def check_queue_runs() -> None:
    """Raise UserError if the path of DVC's cache has other letters than ASCII.

    A queued experiment gets a configuration that names it, which DVC's library of configurations (configobj) encodes as
    ASCII; its worker fails then, and `dvc exp run --run-all` waits for ever.
    """
    from dvc.repo import Repo

    with Repo() as repo:
        cache = repo.cache.local_cache_dir
    if not cache.isascii():
        raise UserError(
            f"{cache}: DVC's queue hangs where the path of its cache has other letters than ASCII; give the cache "
            f"another place, `dvc cache dir --local /a/plain/path`, or move the repository"
        )


def read_experiments() -> Losses:
    """The trials among the experiments of the commit at hand."""
    import dvc.api

    losses = {}
    for row in dvc.api.exp_show():
        if (row["Experiment"] or "").startswith("sweep-") and row["State"] != "Queued":
            group = f"methods.{row['method']}"
            trial = Trial(row["method"], row[f"{group}.learning_rate"], int(row[f"{group}.epochs"]))
            losses[trial] = math.inf if row["State"] == "Failed" else row["validation_loss"]
    return losses


def _dvc(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["dvc", *arguments])
    if check and done.returncode:
        raise UserError(
            f"`dvc {' '.join(arguments)}` failed; fix what it reports, and rerun the command: finished trials are kept"
        )


def as_data(losses: Losses) -> dict:
    """JSON form: a list of trials, those of a method together."""
    order = list(METHODS)
    trials = sorted(losses, key=lambda t: (order.index(t.method), t.epochs, t.learning_rate))
    return {"seed": SEED, "trials": [asdict(trial) | {"validation_loss": losses[trial]} for trial in trials]}


def from_data(data: dict) -> Losses:
    """What `as_data` was made of."""
    return {Trial(row["method"], row["learning_rate"], row["epochs"]): row["validation_loss"] for row in data["trials"]}


def markdown(data: dict) -> str:
    """A row for each learning rate and number of epochs; each method's best is bold."""
    losses = from_data(data)
    chosen = {best(losses, method) for method in METHODS}
    lines = ["| method | learning rate | epochs | validation loss |", "|---|---:|---:|---:|"]
    for trial, loss in losses.items():
        mark = "**" if trial in chosen else ""
        lines.append(
            f"| {trial.method} | {mark}{trial.learning_rate:g}{mark} | {trial.epochs} | {mark}{loss:.4f}{mark} |"
        )
    return "\n".join([*lines, "", f"Seed {data['seed']}; bold is the least loss, which params.yaml takes."])
