"""Runs of the pipeline, read back: the workspace's last one, Git revisions, and DVC experiments."""

import io
import json
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas

from finetune import dvc_files, yaml_file
from finetune.errors import UserError
from finetune.experiments import dvc_lock, revisions
from finetune.files import jsonl_rows
from finetune.places import CURVES, MEMORY_TABLE, METRICS, PLOTS, PREDICTIONS, PREPARED

_BRING_BACK = "run it again, or `dvc push` where it ran"


@dataclass(frozen=True)
class Run:
    """One run: its settings, figures, answers and curves."""

    name: str
    commit: str
    """Git commit that it started from, short; 'workspace' for the last run here."""
    params: dict
    prepared: str
    """MD5 of the prepared data."""
    metrics: dict[str, dict]
    """metrics/*.json by name: data, base, train, eval, and what else is known of them: train.facts, eval.facts."""
    answers: list[dict]
    base_answers: list[dict]
    rounded_answers: list[dict]
    """Of the base model in four bits; none from before it was scored."""
    curve: pandas.DataFrame
    """A row each optimizer step: step, loss, seconds, tokens."""
    memory: pandas.DataFrame
    """seconds, process_gb, device_gb."""

    @property
    def method(self) -> str:
        """Name of the method, one of `METHODS`."""
        return self.params["method"]

    @property
    def seed(self) -> int:
        """Seed of training: of the adapters' start and the order of the examples."""
        return self.params["seed"]

    @property
    def costs(self) -> dict:
        """By the keys of `measures.COSTS`; a figure that isn't known where it ran is missing."""
        return self.metrics["train"] | self.metrics["train.facts"]

    @property
    def settings(self) -> dict:
        """What it trained with, as dotted keys, without the seed and the other methods' settings."""
        own = {key: value for key, value in self.params.items() if key not in ("methods", "seed")}
        return _flat(own | {"methods": {self.method: self.params["methods"][self.method]}})


def workspace() -> Run:
    """The run whose results lie in the workspace. Raises UserError if there is none, or params.yaml changed since."""
    return _read(None, "workspace", "workspace", "run `dvc repro` first")


def find(patterns: list[str]) -> list[Run]:
    """The runs that `patterns` name: DVC experiments, with * and ? as in a shell, or Git revisions.

    Raises UserError for a pattern that names nothing, an experiment that failed or hasn't run, and one without
    results, or with results of unlike runs.
    """
    with revisions.repository(", ".join(patterns)) as repo:
        known = revisions.experiments(repo)
    names = list(dict.fromkeys(name for pattern in patterns for name in _matching(pattern, known)))
    return [_found(name, revisions.the_one(name, known)) for name in names]


def answers(name: str, revision: str | None, file: str = "tuned") -> list[dict]:
    """The recorded test answers of the run called `name`, nothing else of it read.

    They lie in the Git commit `revision`; None: in the workspace. `file` is tuned, base or base-4bit: whose answers.
    Raises UserError as `workspace` and `find` do.
    """
    remedy = "run `dvc repro` first" if revision is None else _BRING_BACK
    params = yaml_file.parse(_text("params.yaml", revision, name, remedy))
    locked = dvc_files.parse_lock(_text("dvc.lock", revision, name, remedy), name)
    dvc_lock.check_consistent(locked, params, name)
    return jsonl_rows(_text(PREDICTIONS / f"{file}.jsonl", revision, name, remedy))


def _matching(pattern: str, known: Collection[str]) -> list[str]:
    names = sorted(name for name in known if fnmatchcase(name, pattern))
    if not names and set(pattern) & set("*?["):
        raise UserError(f"{pattern}: no experiment has such a name; `dvc exp list --all-commits` lists them")
    if not names:
        revisions.check_ended(pattern)
    return names or [pattern]


def _found(name: str, experiment: revisions.Experiment | None) -> Run:
    revision, commit = (experiment.revision, experiment.started_from) if experiment else (name, name)
    return _read(revision, commit, name, _BRING_BACK)


def _text(path: str | Path, revision: str | None, name: str, remedy: str) -> str:
    """A file of run `name`."""
    import dvc.api
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError
    from dvc_data.index import DataIndexDirError

    try:
        return dvc.api.read(Path(path).as_posix(), rev=revision, encoding="utf-8")
    except SCMError:
        raise UserError(
            f"{name}: no such experiment or revision; `dvc exp list --all-commits` lists the experiments"
        ) from None
    except (DvcException, DataIndexDirError, OSError):
        raise UserError(f"{name}: no {path} of it, here or in the remote; {remedy}") from None


def _read(revision: str | None, commit: str, name: str, remedy: str) -> Run:
    def text(path: str | Path) -> str:
        return _text(path, revision, name, remedy)

    def table(path: Path) -> pandas.DataFrame:
        return pandas.read_csv(io.StringIO(text(path)), sep="\t")

    params, locked = yaml_file.parse(text("params.yaml")), dvc_files.parse_lock(text("dvc.lock"), name)
    dvc_lock.check_consistent(locked, params, name)
    metrics = ("data", "base", "train", "eval", "train.facts", "eval.facts")
    rounded = PREDICTIONS / "base-4bit.jsonl"
    curve = table(PLOTS / CURVES / "train/loss.tsv")
    for column in ("seconds", "tokens"):
        curve[column] = table(PLOTS / CURVES / f"train/{column}.tsv")[column]
    return Run(
        name=name,
        commit=commit,
        params=params,
        prepared=dvc_lock.output_hash(locked, PREPARED.as_posix()),
        metrics={metric: json.loads(text(METRICS / f"{metric}.json")) for metric in metrics},
        answers=jsonl_rows(text(PREDICTIONS / "tuned.jsonl")),
        base_answers=jsonl_rows(text(PREDICTIONS / "base.jsonl")),
        rounded_answers=jsonl_rows(text(rounded)) if dvc_lock.has_output(locked, rounded.as_posix()) else [],
        curve=curve,
        memory=table(PLOTS / MEMORY_TABLE),
    )


def _flat(tree: dict, path: str = "") -> dict:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        dotted = f"{path}.{key}" if path else key
        flat |= _flat(value, dotted) if isinstance(value, dict) else {dotted: value}
    return flat
