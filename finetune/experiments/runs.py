"""Runs of the pipeline, read back: the workspace's last one, Git revisions, and DVC experiments."""

import io
import json
from dataclasses import dataclass
from fnmatch import fnmatchcase

import pandas
import yaml

from finetune import lock
from finetune.errors import UserError
from finetune.files import jsonl_rows

LIVE = "plots/live/plots/metrics"


@dataclass(frozen=True)
class Run:
    """One run: its settings, figures, answers and curves."""

    name: str
    commit: str
    """Git commit that it started from, short; 'workspace' for the last run here."""
    params: dict
    prepared: str
    """Hash of the prepared data."""
    metrics: dict[str, dict]
    """metrics/*.json by name: data, base, train, eval, and what they depend on: train.about, ..."""
    answers: list[dict]
    base_answers: list[dict]
    curve: pandas.DataFrame
    """A row each optimizer step: step, loss, seconds, tokens."""
    memory: pandas.DataFrame
    """seconds, process_gb, device_gb."""

    @property
    def method(self) -> str:
        return self.params["method"]

    @property
    def seed(self) -> int:
        return self.params["seed"]

    @property
    def settings(self) -> dict:
        """What it trained with, as dotted keys, without the seed and the other methods' settings."""
        own = {key: value for key, value in self.params.items() if key not in ("methods", "seed")}
        return _flat(own | {"methods": {self.method: self.params["methods"][self.method]}})


def workspace() -> Run:
    """The run whose results lie in the workspace. Raises UserError if there is none, or params.yaml has changed since."""
    return _read(None, "workspace", "workspace", "run `dvc repro` first")


def find(patterns: list[str]) -> list[Run]:
    """The runs that `patterns` name: DVC experiments, with * and ? as in a shell, or Git revisions.

    Raises UserError for a pattern that names nothing, an experiment that failed or hasn't run, and one without
    results, or with results of unlike runs.
    """
    known = _experiments()
    names = list(dict.fromkeys(name for pattern in patterns for name in _matching(pattern, known)))
    return [_read(*known.get(name, (name, name)), name, "run it again, or `dvc push` where it ran") for name in names]


def _experiments() -> dict[str, tuple[str, str]]:
    """Name -> (revision, short commit that it started from); an experiment of the commit at hand hides namesakes."""
    from dvc.repo import Repo

    with Repo() as repo:
        found = repo.experiments.ls(all_commits=True)
        here = repo.scm.get_rev()
        of_here = {name for name, _ in found.get(here, [])}
        known = {}
        for commit, experiments in found.items():
            for name, revision in experiments:
                if name in of_here and commit != here:
                    continue
                if name in known:
                    raise UserError(
                        f"{name}: two commits have an experiment of this name, {known[name][1]} and {commit[:7]}; "
                        f"remove one: `dvc exp remove {name} --rev COMMIT`"
                    )
                known[name] = (revision, commit[:7])
    return known


def _matching(pattern: str, known: dict) -> list[str]:
    found = sorted(name for name in known if fnmatchcase(name, pattern))
    if found or not set(pattern) & set("*?["):
        return found or [_unfinished(pattern)]
    raise UserError(f"{pattern}: no experiment has such a name; `dvc exp list --all-commits` lists them")


def _unfinished(name: str) -> str:
    """`name`, which may be a Git revision. Raises UserError if it is an experiment in the queue, or one that failed."""
    import dvc.api

    states = {row["Experiment"]: row["State"] for row in dvc.api.exp_show()}
    if states.get(name) == "Failed":
        raise UserError(f"{name}: its run failed; `dvc queue logs {name}` says why")
    if states.get(name) in ("Queued", "Running"):
        raise UserError(f"{name}: has not ended yet; `dvc queue status` shows where it is")
    return name


def _read(revision: str | None, commit: str, name: str, remedy: str) -> Run:
    import dvc.api
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError
    from dvc_data.index import DataIndexDirError

    def text(path: str) -> str:
        try:
            return dvc.api.read(path, rev=revision, encoding="utf-8")
        except SCMError:
            raise UserError(
                f"{name}: no such experiment or revision; `dvc exp list --all-commits` lists the experiments"
            ) from None
        except (DvcException, DataIndexDirError, OSError):
            raise UserError(f"{name}: no {path} of it, here or in the remote; {remedy}") from None

    def table(path: str) -> pandas.DataFrame:
        return pandas.read_csv(io.StringIO(text(path)), sep="\t")

    params, locked = (yaml.safe_load(text(path)) for path in ("params.yaml", "dvc.lock"))
    lock.check(locked, params, name)
    metrics = ("data", "base", "train", "eval", "train.about", "eval.about")
    curve = table(f"{LIVE}/train/loss.tsv")
    for column in ("seconds", "tokens"):
        curve[column] = table(f"{LIVE}/train/{column}.tsv")[column]
    return Run(
        name=name,
        commit=commit,
        params=params,
        prepared=lock.output_hash(locked, "data/prepared"),
        metrics={metric: json.loads(text(f"metrics/{metric}.json")) for metric in metrics},
        answers=jsonl_rows(text("data/predictions/tuned.jsonl")),
        base_answers=jsonl_rows(text("data/predictions/base.jsonl")),
        curve=curve,
        memory=table("plots/memory.tsv"),
    )


def _flat(tree: dict, path: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        dotted = f"{path}.{key}" if path else key
        flat |= _flat(value, dotted) if isinstance(value, dict) else {dotted: value}
    return flat
