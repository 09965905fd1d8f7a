"""Runs side by side: scores with intervals, paired tests, costs, and what they don't share.

Runs that differ in nothing but the seed are one contender. A contender's score is the mean over its seeds. Its interval
is over the test examples, for these very models; the spread over seeds stands apart.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import median

import numpy

from finetune import significance
from finetune.errors import UserError
from finetune.runs import Run

METHODS = ("qlora", "lora", "full")
REFERENCE = "full"
"""The method whose gain over the base model others keep a share of."""

COSTS = (
    "peak_device_gb",
    "weights_gb",
    "adapters_gb",
    "gradients_gb",
    "optimizer_gb",
    "activations_gb",
    "rest_gb",
    "peak_process_gb",
    "seconds_per_epoch",
    "train_seconds",
    "tokens_per_second",
    "energy_kj",
    "size_on_disk_gb",
    "trained_parameters",
)
"""Keys of metrics/train.json."""


@dataclass(frozen=True)
class Contender:
    """Runs of the same settings with unlike seeds."""

    label: str
    runs: list[Run]

    @property
    def method(self) -> str:
        return self.runs[0].method


def contenders(runs: list[Run]) -> list[Contender]:
    """`runs` by their settings, named by method or, if a method has several settings, by the first run.

    Raises UserError if they can't be compared: unlike test sets or base models, or the same run twice.
    """
    _check(runs)
    by_settings: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (METHODS.index(run.method), run.seed)):
        by_settings.setdefault(repr(sorted(run.settings.items())), []).append(run)
    methods = [same[0].method for same in by_settings.values()]
    return [
        Contender(same[0].method if methods.count(same[0].method) == 1 else same[0].name, same)
        for same in by_settings.values()
    ]


def _check(runs: list[Run]) -> None:
    first, seen = runs[0], {}
    for run in runs:
        if _test_set(run) != _test_set(first):
            raise UserError(
                f"{run.name} and {first.name} were scored on different test sets; "
                f"compare runs of the same data source, size, shares, template and data.seed"
            )
        if run.params["model"] != first.params["model"]:
            raise UserError(f"{run.name} and {first.name} start from different base models; compare runs of the same")
        key = (run.seed, repr(sorted(run.settings.items())))
        if key in seen:
            raise UserError(f"{run.name} and {seen[key]} have the same settings and seed; name one of them")
        seen[key] = run.name


def _test_set(run: Run) -> list[tuple[str, str]]:
    return [(row["prompt"], row["reference"]) for row in run.answers]


def compare(found: list[Contender]) -> dict:
    """Everything that the table says of the contenders, as JSON data."""
    runs = [run for contender in found for run in contender.runs]
    drawn = significance.resamples(len(runs[0].answers))
    base = [significance.answers(runs[0].base_answers)]
    answers = {"base": base} | {c.label: [significance.answers(run.answers) for run in c.runs] for c in found}
    samples = {label: significance.scores(these, drawn) for label, these in answers.items()}
    first, reference = runs[0].metrics, _reference(found)
    return {
        "base": {"scores": _scores(base, samples["base"])},
        "contenders": {c.label: _contender(c, _scores(answers[c.label], samples[c.label])) for c in found},
        "differences": [_difference(a, b, samples) for a, b in _pairs(list(samples))],
        "reference": reference,
        "kept": _kept(reference, samples) if reference else {},
        "flags": flags(found),
        "training_examples": first["data"]["train_records"],
        "test_examples": len(runs[0].answers),
        "resamples": significance.SAMPLES,
        "commits": sorted({run.commit for run in runs}),
        "data": sorted({run.prepared for run in runs}),
        **{what: sorted({run.metrics["train.about"][what] for run in runs}) for what in ("hardware", "versions")},
        **first["eval.about"],
    }


def _scores(runs: list[significance.Answers], samples: dict) -> dict:
    everything = numpy.ones((1, len(runs[0].nats)), dtype=int)
    each = [significance.scores([run], everything) for run in runs]
    return {
        score: asdict(significance.estimate(samples[score])) | {"seeds": [float(one[score][0]) for one in each]}
        for score in significance.SCORES
    }


def _contender(contender: Contender, scores: dict) -> dict:
    method = contender.runs[0].params["methods"][contender.method]
    return {
        "method": contender.method,
        "runs": [run.name for run in contender.runs],
        "seeds": [run.seed for run in contender.runs],
        "learning_rate": float(method["learning_rate"]),
        "epochs": method["epochs"],
        "scores": scores,
        "costs": {key: _spread(contender, key) for key in COSTS if key in contender.runs[0].metrics["train"]},
    }


def _spread(contender: Contender, key: str) -> dict[str, float]:
    values = [run.metrics["train"][key] for run in contender.runs if key in run.metrics["train"]]
    return {"median": median(values), "least": min(values), "most": max(values)}


def _pairs(labels: list[str]) -> list[tuple[str, str]]:
    """Each contender against the base model, then the contenders against each other."""
    base, *others = labels
    return [(label, base) for label in others] + list(combinations(others, 2))


def _difference(a: str, b: str, samples: dict) -> dict:
    found = {}
    for score in significance.SCORES:
        differences = samples[a][score] - samples[b][score]
        found[score] = asdict(significance.estimate(differences)) | {"p": significance.p_value(differences)}
    return {"first": a, "second": b, "scores": found}


def _reference(found: list[Contender]) -> str | None:
    """The one contender of the method `REFERENCE`; None if there are several, or none."""
    labels = [contender.label for contender in found if contender.method == REFERENCE]
    return labels[0] if len(labels) == 1 else None


def _kept(reference: str, samples: dict) -> dict[str, dict]:
    """Each contender's share of the reference's gain over the base, where the reference has gained for certain."""
    kept: dict[str, dict] = {}
    for score in significance.SCORES:
        gain = samples[reference][score] - samples["base"][score]
        if not significance.estimate(gain).excludes(0):
            continue
        for label, these in samples.items():
            if label not in ("base", reference):
                share = (these[score] - samples["base"][score]) / gain
                kept.setdefault(label, {})[score] = asdict(significance.estimate(share))
    return kept


def flags(found: list[Contender]) -> list[str]:
    """A sentence on each thing that the runs should share, or have, and don't."""
    runs = [run for contender in found for run in contender.runs]
    sentences = [
        _unlike(runs, "trained on different data", lambda run: f"prepared data {run.prepared[:8]}"),
        _unlike(
            runs,
            "ran on different hardware, so costs don't compare",
            lambda run: run.metrics["train.about"]["hardware"],
        ),
        _unlike(runs, "ran on different versions", lambda run: run.metrics["train.about"]["versions"]),
        _unlike(runs, "started from different commits", lambda run: run.commit),
    ]
    if any(_predictions(run) != _predictions(runs[0]) for run in runs):
        sentences.append("The base model's answers differ between the runs; those of the first run are shown.")
    if len({tuple(run.seed for run in contender.runs) for contender in found}) > 1:
        sentences.append(f"Seeds differ: {'; '.join(f'{c.label} {_list(r.seed for r in c.runs)}' for c in found)}.")
    if all(len(contender.runs) == 1 for contender in found):
        sentences.append("One seed each: the spread over seeds is not known.")
    return [sentence for sentence in sentences if sentence]


def _unlike(runs: list[Run], what: str, value: Callable[[Run], str]) -> str:
    values: dict[str, list[str]] = {}
    for run in runs:
        values.setdefault(value(run), []).append(run.name)
    if len(values) == 1:
        return ""
    return f"The runs {what}: {'; '.join(f'{_list(names)}: {one}' for one, names in values.items())}."


def _predictions(run: Run) -> list[str]:
    return [row["prediction"] for row in run.base_answers]


def _list(values) -> str:
    return ", ".join(map(str, values))
