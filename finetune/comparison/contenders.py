"""Runs that differ in nothing but the seed are one contender; which contenders can be compared, and what to flag."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from finetune.comparison.significance import FEW_EXAMPLES
from finetune.errors import UserError
from finetune.experiments.runs import Run
from finetune.methods import METHODS


@dataclass(frozen=True)
class Contender:
    """Runs of the same settings with unlike seeds."""

    label: str
    runs: list[Run]

    @property
    def method(self) -> str:
        """Name of the method, one of `METHODS`."""
        return self.runs[0].method


def group(runs: list[Run]) -> list[Contender]:
    """`runs` by their settings, named by method or, if a method has several settings, by the first run.

    Raises UserError if they can't be compared: unlike test sets or base models, or the same run twice.
    """
    _check_comparable(runs)
    order = list(METHODS)
    by_settings: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (order.index(run.method), run.seed)):
        by_settings.setdefault(repr(sorted(run.settings.items())), []).append(run)
    methods = [same[0].method for same in by_settings.values()]
    return [
        Contender(same[0].method if methods.count(same[0].method) == 1 else same[0].name, same)
        for same in by_settings.values()
    ]


def _check_comparable(runs: list[Run]) -> None:
    first, seen = runs[0], dict[tuple, str]()
    for run in runs:
        if _test_set(run) != _test_set(first):
            raise UserError(
                f"{run.name} and {first.name} were scored on different test sets; "
                f"compare runs of the same data source, size, shares, template and data.seed"
            )
        _check_same_measure(run, first)
        _check_losses(run)
        if run.params["model"] != first.params["model"]:
            raise UserError(f"{run.name} and {first.name} start from different base models; compare runs of the same")
        key = (run.seed, repr(sorted(run.settings.items())))
        if key in seen:
            raise UserError(f"{run.name} and {seen[key]} have the same settings and seed; name one of them")
        seen[key] = run.name


def _check_same_measure(run: Run, first: Run) -> None:
    """That both runs' answers were made and scored alike."""
    if _unversioned(run) != _unversioned(first):
        raise UserError(
            f"{run.name} and {first.name} were scored by unlike metrics ({_signatures(run)}; {_signatures(first)}); "
            f"give them the same eval.tokenize and run their eval again"
        )
    longest, of_first = (one.settings.get("eval.max_new_tokens") for one in (run, first))
    if longest != of_first:
        raise UserError(
            f"{run.name} and {first.name} answered in at most {longest} and {of_first} tokens; "
            f"compare runs of the same eval.max_new_tokens"
        )


def _signatures(run: Run) -> str:
    return " and ".join(run.metrics["eval.facts"][key] for key in ("bleu_signature", "rouge_signature"))


def _unversioned(run: Run) -> str:
    """How the scores were made, whatever releases made them: unlike releases are flagged, not refused."""
    return re.sub(r"\b(version|rouge-score):[^| ]+", r"\1", _signatures(run))


def _check_losses(run: Run) -> None:
    for row in (*run.answers, *run.base_answers):
        if not math.isfinite(row["nats"]):
            raise UserError(f"{run.name}: the loss of test record {row['record']} is {row['nats']}; run it again")


def _test_set(run: Run) -> list[tuple[str, str]]:
    return [(row["prompt"], row["reference"]) for row in run.answers]


def flags(contenders: list[Contender]) -> list[str]:
    """A sentence on each thing that the runs should share, or have, and don't."""
    runs = [run for contender in contenders for run in contender.runs]
    sentences = [
        _unlike(runs, "trained on different data", lambda run: f"prepared data {run.prepared[:8]}"),
        _unlike(
            runs,
            "ran on different hardware, so costs don't compare",
            lambda run: run.metrics["train.facts"]["hardware"],
        ),
        _unlike(runs, "ran on different versions", lambda run: run.metrics["train.facts"]["versions"]),
        _unlike(runs, "were scored by different versions", _signatures),
        _unlike(runs, "started from different commits", lambda run: run.commit),
    ]
    sentences += [_ceiling(runs[0]), *map(_silence, runs)]
    if len(runs[0].answers) < FEW_EXAMPLES:
        sentences.append(
            f"Only {len(runs[0].answers)} test example(s): below {FEW_EXAMPLES} the intervals are too narrow to be "
            f"believed; raise data.size or data.test."
        )
    if any(_base_predictions(run) != _base_predictions(runs[0]) for run in runs):
        sentences.append("The base model's answers differ between the runs; those of the first run are shown.")
    if len({tuple(run.seed for run in contender.runs) for contender in contenders}) > 1:
        seeds = "; ".join(f"{c.label} {_list(run.seed for run in c.runs)}" for c in contenders)
        sentences.append(f"Seeds differ: {seeds}.")
    if all(len(contender.runs) == 1 for contender in contenders):
        sentences.append("One seed each: the spread over seeds is not known.")
    return [sentence for sentence in sentences if sentence]


def _ceiling(run: Run) -> str:
    facts = run.metrics["eval.facts"]
    best = {title: facts.get(key, 100) for title, key in (("BLEU", "bleu_at_best"), ("ROUGE-L", "rouge_l_at_best"))}
    if min(best.values()) >= 100:
        return ""
    figures = " and ".join(f"{value:g} in {title}" for title, value in best.items())
    return f"Even the references themselves would score {figures}: some hold no word that the metric sees."


def _silence(run: Run) -> str:
    empty = sum(not row["prediction"] for row in run.answers)
    return f"{run.name}: {empty} of {len(run.answers)} answers are empty." if 2 * empty > len(run.answers) else ""


def _unlike(runs: list[Run], what: str, value: Callable[[Run], str]) -> str:
    names: dict[str, list[str]] = {}
    for run in runs:
        names.setdefault(value(run), []).append(run.name)
    if len(names) == 1:
        return ""
    return f"The runs {what}: {'; '.join(f'{_list(same)}: {one}' for one, same in names.items())}."


def _base_predictions(run: Run) -> list[str]:
    return [row["prediction"] for row in run.base_answers]


def _list(values: Iterable) -> str:
    return ", ".join(map(str, values))
