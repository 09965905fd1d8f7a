"""What a comparison says of runs whose truth is known: verdict, shares, flags, refusals."""

import math
from dataclasses import replace

import pandas
import pytest

from finetune.comparison import contenders, significance, verdict
from finetune.comparison.compare import compare
from finetune.comparison.html_report import examples, html
from finetune.comparison.measures import COSTS
from finetune.comparison.tables import report, summary
from finetune.errors import UserError
from finetune.evaluation import scoring
from finetune.experiments.runs import Run
from finetune.kernels.loss import SequenceLoss
from finetune.methods import METHODS

REFERENCES = [f"The answer to question {n} is that {n} ships sail from the old harbour to town {n}." for n in range(40)]
PROMPTS = [{"record": n, "prompt": f"Question {n}?", "reference": text} for n, text in enumerate(REFERENCES)]
SIGNATURES = {
    "bleu_signature": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0",
    "rouge_signature": "rouge-score:0.1.2|f1|stem:no",
}
SETTINGS = {name: {"learning_rate": 1e-3, "epochs": 1} for name in METHODS}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(significance, "RESAMPLES", 300)


def answers(words: int, nats: float) -> list[dict]:
    """Answers that are right in their first `words` words, at about `nats` per response token."""
    said = [" ".join([*text.split()[:words], "no", "more"]) for text in REFERENCES]
    return scoring.scored_rows(PROMPTS, said, [SequenceLoss(10 * nats + n % 5, 10) for n in range(len(PROMPTS))])


def run(method: str, seed: int = 1, words: int = 8, nats: float = 1.5, cost: float = 1.0, **changes) -> Run:
    train = {key: cost for key in COSTS if key != "energy_kj"}
    metrics = {
        "data": {"train_records": 100},
        "base": {},
        "train": train,
        "eval": {},
        "train.facts": {"hardware": "one machine", "versions": "torch 1"},
        "eval.facts": SIGNATURES,
    }
    curve = pandas.DataFrame({"step": [1, 2], "loss": [3.0, 2.0], "seconds": [1.0, 2.0], "tokens": [10, 20]})
    made = Run(
        name=f"{method}-{seed}",
        commit="abc1234",
        params={"method": method, "seed": seed, "model": {"source": "m"}, "methods": SETTINGS},
        prepared="0123456789",
        metrics=metrics,
        answers=answers(words, nats),
        base_answers=answers(4, 2.0),
        rounded_answers=[],
        curve=curve,
        memory=pandas.DataFrame({"seconds": [0.0, 1.0], "process_gb": [1.0, 2.0], "device_gb": [0.5, 1.5]}),
    )
    return replace(made, **changes)


def compared(*runs: Run) -> dict:
    return compare(contenders.group(list(runs)))


def test_a_sure_gain_and_its_share_are_said_in_words():
    said = verdict.verdict(compared(run("qlora", words=8, nats=1.75, cost=0.4), run("full", words=12, cost=1.0)))
    assert any("QLoRA reaches" in s and "50% [50, 50] in test loss of full fine-tuning's gain" in s for s in said)
    assert any("at 0.40 of its device memory and 0.40 of its training time on one machine" in s for s in said)
    assert any(s.startswith("QLoRA is better than the base model in BLEU (+") for s in said)
    assert any(s.startswith("QLoRA is worse than full fine-tuning in BLEU (-") for s in said)


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        (
            [("qlora", 1.75, 1.0), ("lora", 1.5, 2.0), ("full", 1.5, 4.0)],
            "Take LoRA on this model and these data: the data can't tell its test loss from that of full fine-tuning, "
            "and it takes the least memory.",
        ),
        (
            [("qlora", 1.75, 1.0), ("full", 1.5, 4.0)],
            "Take full fine-tuning on this model and these data: it has the lowest test loss (p = 0.003).",
        ),
        (
            [("qlora", 2.0, 1.0), ("full", 2.0, 4.0)],
            "Take the base model: no method lowers its test loss significantly.",
        ),
    ],
)
def test_the_one_to_take_is_the_cheapest_of_those_that_nothing_beats(runs, sentence):
    data = compared(*(run(method, nats=nats, cost=cost) for method, nats, cost in runs))
    assert verdict.verdict(data)[0] == sentence
    assert summary(data).startswith(f"**{sentence}**")


def test_what_rounding_costs_is_told_apart_from_what_training_gains():
    rounded = [row | {"nats": 1.125 * row["nats"]} for row in run("qlora").base_answers]
    data = compared(run("qlora", words=8, nats=1.75, rounded_answers=rounded), run("full", words=12))
    assert "|  | base | base, 4-bit | qlora | full |" in summary(data)
    assert "- Four bits take the base model's test loss from 2.200 to 2.475." in summary(data)
    assert "|  | base | base, 4-bit | qlora | full |" in report(data)
    others = compared(run("lora", words=8, rounded_answers=rounded), run("full", words=12))
    assert "4-bit" not in summary(others) + report(others)


def test_equal_runs_cannot_be_told_apart():
    said = verdict.verdict(compared(run("qlora"), run("full")))
    assert "The data can't tell QLoRA and full fine-tuning apart in BLEU, ROUGE-L or test loss." in said


def test_without_a_gain_no_share_is_given():
    data = compared(run("qlora", words=4, nats=2.0), run("full", words=4, nats=2.0))
    assert data["share_of_gain"] == {}
    assert any("has no significant gain on the base model" in s for s in verdict.verdict(data))


def test_with_two_settings_of_full_fine_tuning_no_share_is_given():
    other = run("full", words=10)
    other.params["train"] = {"weight_decay": 0.1}
    data = compared(run("qlora"), run("full", words=12), replace(other, name="decayed"))
    assert list(data["contenders"]) == ["qlora", "full-1", "decayed"] and data["share_of_gain"] == {}
    assert not any("gain" in sentence for sentence in verdict.verdict(data))


def test_spread_over_seeds_stands_apart_from_the_interval():
    data = compared(*(run("qlora", seed, nats=nats, cost=cost) for seed, nats, cost in ((1, 1.4, 2), (2, 1.6, 4))))
    contender = data["contenders"]["qlora"]
    mean = sum(n % 5 for n in range(40)) / 400
    assert contender["scores"]["test_loss"]["seeds"] == pytest.approx([1.4 + mean, 1.6 + mean], abs=1e-3)
    assert contender["scores"]["test_loss"]["value"] == pytest.approx(1.5 + mean, abs=1e-3)
    assert contender["costs"]["train_seconds"] == {"median": 3, "least": 2, "most": 4}
    table = report(data)
    assert f"± {math.sqrt(2) / 10:.3f}" in table and "| Training time (s) | - | 3 (2 to 4) |" in table


def test_what_the_runs_do_not_share_is_flagged():
    other = {"hardware": "another machine", "versions": "torch 2"}
    unlike = run("full", commit="def5678", prepared="9999999999")
    unlike.metrics["train.facts"] = other
    flags = compared(run("qlora"), run("qlora", 2), unlike)["flags"]
    for sentence in (
        "The runs trained on different data: qlora-1, qlora-2: prepared data 01234567; full-1: prepared data 99999999.",
        "The runs ran on different hardware, so costs don't compare: qlora-1, qlora-2: one machine; full-1: another machine.",
        "The runs ran on different versions: qlora-1, qlora-2: torch 1; full-1: torch 2.",
        "The runs started from different commits: qlora-1, qlora-2: abc1234; full-1: def5678.",
        "Seeds differ: qlora 1, 2; full 1.",
    ):
        assert sentence in flags


def test_like_runs_raise_no_flag():
    assert compared(*(run(method, seed) for method in ("qlora", "full") for seed in (1, 2)))["flags"] == []


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (run("full", answers=answers(5, 1.0)[1:]), "full-1 and qlora-1 were scored on different test sets"),
        (
            run("full", params={"method": "full", "seed": 1, "model": {"source": "n"}, "methods": SETTINGS}),
            "full-1 and qlora-1 start from different base models",
        ),
        (run("qlora", name="again"), "again and qlora-1 have the same settings and seed; name one of them"),
    ],
)
def test_runs_that_do_not_compare_are_refused(other, sentence):
    with pytest.raises(UserError, match=sentence):
        contenders.group([run("qlora"), other])


def scored(made: Run, **facts: object) -> Run:
    """The run, with other facts of its evaluation."""
    made.metrics["eval.facts"] = SIGNATURES | facts
    return made


def limited(made: Run, tokens: int) -> Run:
    """The run, its answers of at most so many tokens."""
    made.params["eval"] = {"max_new_tokens": tokens}
    return made


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (scored(run("full"), bleu_signature=SIGNATURES["bleu_signature"].replace("13a", "zh")), "unlike metrics"),
        (
            scored(run("full"), bleu_signature=SIGNATURES["bleu_signature"].replace("eff:no", "eff:yes")),
            "eval.tokenize",
        ),
        (scored(run("full"), rouge_signature="rouge-score:0.1.2|f1|stem:no|tok:unicode"), "unlike metrics"),
        (
            limited(run("full"), 64),
            "full-1 and qlora-1 answered in at most 64 and 128 tokens; compare runs of the same",
        ),
        (run("full", answers=answers(8, math.nan)), "full-1: the loss of test record 0 is nan; run it again"),
        (run("full", answers=answers(8, math.inf)), "full-1: the loss of test record 0 is inf; run it again"),
        (run("full", base_answers=answers(8, math.nan)), "full-1: the loss of test record 0 is nan; run it again"),
    ],
)
def test_runs_that_were_not_measured_alike_are_refused(other, sentence):
    other.params.setdefault("eval", {"max_new_tokens": 128})
    with pytest.raises(UserError, match=sentence):
        contenders.group([limited(run("qlora"), 128), other])


def test_unlike_versions_of_the_metrics_are_flagged():
    other = scored(run("full"), bleu_signature=SIGNATURES["bleu_signature"].replace("2.6.0", "2.7.0"))
    (flag,) = [f for f in compared(run("qlora"), other)["flags"] if "scored by different versions" in f]
    assert "version:2.6.0" in flag and "version:2.7.0" in flag


def test_scores_that_cannot_reach_100_are_flagged():
    flags = compared(scored(run("qlora"), bleu_at_best=100.0, rouge_l_at_best=97.5))["flags"]
    assert "Even the references themselves would score 100 in BLEU and 97.5 in ROUGE-L: some hold no word" in flags[0]


def test_answers_that_are_mostly_empty_are_flagged():
    silent = [row | {"prediction": "", "rouge_l": 0.0} for row in answers(8, 1.5)]
    assert "qlora-1: 40 of 40 answers are empty." in compared(run("qlora", answers=silent), run("full"))["flags"]


def few(method: str, examples: int, **settings: float) -> Run:
    made = run(method, **settings)
    return replace(made, answers=made.answers[:examples], base_answers=made.base_answers[:examples])


@pytest.mark.parametrize("examples", [1, 2, 5])
def test_a_handful_of_examples_proves_nothing(examples):
    """The resamples of one example are all alike: without a bound any difference is certain."""
    data = compared(few("qlora", examples, words=4), few("full", examples, words=14, nats=0.5))
    assert data["share_of_gain"] == {} and f"Only {examples} test example" in "".join(data["flags"])
    assert all(e["p"] >= 2 ** (1 - examples) > 0.05 for d in data["differences"] for e in d["scores"].values())
    advice, no_share, *pairs = verdict.verdict(data)
    assert advice == "Take the base model: no method lowers its test loss significantly."
    assert no_share.endswith("so no share of its gain can be given.")
    assert all(said.startswith("The data can't tell ") for said in pairs)
    assert html(contenders.group([few("qlora", examples)]), compared(few("qlora", examples)))
    assert report(data)


@pytest.mark.parametrize("said", ["", "the same answer to everything"])
def test_answers_that_are_all_alike_compare(said):
    rows = [{**row, "prediction": said, "rouge_l": 0.0} for row in answers(8, 1.5)]
    data = compared(run("qlora", answers=rows), run("full", answers=rows))
    assert math.isfinite(data["contenders"]["full"]["scores"]["bleu"]["high"])
    assert data["differences"][-1]["scores"]["bleu"]["p"] == 1


def test_a_gain_of_nothing_on_some_resamples_leaves_a_finite_share():
    """Five examples of forty gain: a resample in two hundred draws none of them, and 0 / 0 is no share."""
    gained = answers(4, 2.0)
    for row in gained[:5]:
        row["rouge_l"] = 90.0
    data = compared(run("qlora", answers=gained, nats=2.0), run("full", answers=gained, nats=2.0))
    assert data["share_of_gain"]["qlora"]["rouge_l"] == {"value": 1.0, "low": 1.0, "high": 1.0}


CHINESE = [f"第{n}个问题的答案是{n}艘船从旧港口驶向城镇。" for n in range(40)]


def test_the_bootstrap_cuts_words_as_the_scores_did():
    prompts = [{"record": n, "prompt": f"{n}?", "reference": text} for n, text in enumerate(CHINESE)]
    said = [text[:-4] + "不知道" for text in CHINESE]
    losses = [SequenceLoss(10, 10)] * 40
    whole = scoring.score(said, CHINESE)
    rows = scoring.scored_rows(prompts, said, losses)
    facts = {key: whole[key] for key in SIGNATURES}
    data = compared(scored(run("full", answers=rows, base_answers=rows), **facts))
    estimate = data["contenders"]["full"]["scores"]
    assert estimate["bleu"]["value"] == pytest.approx(whole["bleu"]) and 20 < whole["bleu"] < 99
    assert estimate["rouge_l"]["value"] == pytest.approx(whole["rougeL"], abs=0.01) and whole["rougeL"] > 50


def test_examples_are_the_widest_gaps():
    uneven = answers(4, 1.0)
    uneven[7] = answers(14, 1.0)[7]
    compared = contenders.group([run("qlora", words=4, answers=uneven), run("full", words=4)])
    (best,) = examples(compared)["qlora best against full"]
    assert best.prompt == "Question 7?" and set(best.answers) == {"base", "qlora", "full"}
    assert best.answers["qlora"][1] > best.answers["full"][1]


def test_the_page_escapes_what_models_say():
    sly = answers(6, 1.0)
    sly[3]["prediction"], sly[3]["rouge_l"] = "<script>alert(1)</script>", 100.0
    compared = contenders.group([run("qlora", answers=sly), run("full", words=4)])
    page = html(compared, compare(compared))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "<script" not in page
