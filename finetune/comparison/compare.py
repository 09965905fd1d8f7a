"""Contenders side by side: scores with intervals, paired tests, shares of the reference's gain, costs.

A contender's score is the mean over its seeds. Its interval is over the test examples, for these very models; the
spread over seeds stands apart.
"""

from dataclasses import asdict
from itertools import combinations
from statistics import median

import numpy

from finetune.comparison import significance
from finetune.comparison.contenders import Contender, flags
from finetune.comparison.measures import COSTS, SCORES
from finetune.experiments.runs import Run
from finetune.methods import METHODS, REFERENCE

Scores = dict[str, numpy.ndarray]
"""Score -> its values on the test set and on each resample, as `significance.scores` gives them."""


def compare(contenders: list[Contender]) -> dict:
    """Everything that tables, charts and verdict say of the contenders, as JSON data."""
    runs = [run for contender in contenders for run in contender.runs]
    drawn = significance.resamples(len(runs[0].answers))
    first, reference = runs[0].metrics, _reference(contenders)
    signature = first["eval.facts"]["bleu_signature"]
    answers = {"base": [significance.answers(runs[0].base_answers, signature)]}
    answers |= {c.label: [significance.answers(run.answers, signature) for run in c.runs] for c in contenders}
    scores = {label: significance.scores(own, drawn) for label, own in answers.items()}
    examples = len(runs[0].answers)
    return {
        "base": {"scores": _estimates(answers["base"], scores["base"])},
        **_rounded(runs, drawn, signature),
        "contenders": {c.label: _contender(c, _estimates(answers[c.label], scores[c.label])) for c in contenders},
        "differences": [_difference(a, b, scores, examples) for a, b in _pairs(list(scores))],
        "reference": reference,
        "share_of_gain": _share_of_gain(reference, scores)
        if reference and examples >= significance.FEW_EXAMPLES
        else {},
        "flags": flags(contenders),
        "training_examples": first["data"]["train_records"],
        "test_examples": examples,
        "resamples": significance.RESAMPLES,
        "commits": sorted({run.commit for run in runs}),
        "data": sorted({run.prepared for run in runs}),
        **{what: sorted({run.metrics["train.facts"][what] for run in runs}) for what in ("hardware", "versions")},
        **{what: first["eval.facts"][what] for what in ("bleu_signature", "rouge_signature")},
    }


def _rounded(runs: list[Run], drawn: numpy.ndarray, signature: str) -> dict[str, dict]:
    """The scores of the base model in four bits, on which a quantised method was trained, if there is one."""
    found = [run.rounded_answers for run in runs if METHODS[run.method].quantized and run.rounded_answers]
    if not found:
        return {}
    answers = [significance.answers(found[0], signature)]
    return {"base_4bit": {"scores": _estimates(answers, significance.scores(answers, drawn))}}


def _estimates(runs: list[significance.Answers], scores: Scores) -> dict[str, dict]:
    """Score -> estimate, and each seed's value."""
    everything = numpy.ones((1, len(runs[0].nats)), dtype=int)
    each = [significance.scores([run], everything) for run in runs]
    return {
        score: asdict(significance.estimate(scores[score])) | {"seeds": [float(one[score][0]) for one in each]}
        for score in SCORES
    }


def _contender(contender: Contender, scores: dict[str, dict]) -> dict:
    settings = contender.runs[0].params["methods"][contender.method]
    return {
        "method": contender.method,
        "runs": [run.name for run in contender.runs],
        "seeds": [run.seed for run in contender.runs],
        "learning_rate": float(settings["learning_rate"]),
        "epochs": settings["epochs"],
        "scores": scores,
        "costs": {key: _spread(contender, key) for key in COSTS if key in contender.runs[0].costs},
    }


def _spread(contender: Contender, key: str) -> dict[str, float]:
    values = [run.costs[key] for run in contender.runs if key in run.costs]
    return {"median": median(values), "least": min(values), "most": max(values)}


def _pairs(labels: list[str]) -> list[tuple[str, str]]:
    """Each contender against the base model, then the contenders against each other."""
    base, *others = labels
    return [(label, base) for label in others] + list(combinations(others, 2))


def _difference(first: str, second: str, scores: dict[str, Scores], examples: int) -> dict:
    estimates = {}
    for score in SCORES:
        differences = scores[first][score] - scores[second][score]
        estimates[score] = asdict(significance.estimate(differences)) | {
            "p": significance.p_value(differences, examples)
        }
    return {"first": first, "second": second, "scores": estimates}


def _reference(contenders: list[Contender]) -> str | None:
    """The one contender of the method `REFERENCE`; None if there are several, or none."""
    labels = [contender.label for contender in contenders if contender.method == REFERENCE.name]
    return labels[0] if len(labels) == 1 else None


def _share_of_gain(reference: str, scores: dict[str, Scores]) -> dict[str, dict]:
    """Each contender's share of the reference's gain over the base, where the reference has gained significantly."""
    shares: dict[str, dict] = {}
    for score in SCORES:
        gain = scores[reference][score] - scores["base"][score]
        if not significance.estimate(gain).excludes(0):
            continue
        for label, own in scores.items():
            if label not in ("base", reference):
                with numpy.errstate(divide="ignore", invalid="ignore"):
                    share = (own[score] - scores["base"][score]) / gain
                shares.setdefault(label, {})[score] = asdict(significance.estimate(share))
    return shares
