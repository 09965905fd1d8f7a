"""Intervals and paired tests agree with sacreBLEU's, and tell what is so from what isn't."""

import numpy
import pytest
import sacrebleu
from sacrebleu.significance import PairedTest

from finetune.comparison import significance
from finetune.comparison.measures import SCORES
from finetune.evaluation import scoring
from finetune.kernels.loss import SequenceLoss

SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
TEXT = "the cat sat on a mat and saw one red apple fall from an old tree near our river"
WORDS = TEXT.split()


def references() -> list[str]:
    draw = numpy.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, size=12)) for _ in range(60)]


def spoilt(share: float, seed: int) -> list[str]:
    """The references with about `share` of their words replaced."""
    draw = numpy.random.default_rng(seed)
    return [" ".join(w if draw.random() > share else draw.choice(WORDS) for w in r.split()) for r in references()]


def answers(predictions: list[str]) -> significance.Answers:
    rows = [{"record": i, "prompt": "", "reference": r} for i, r in enumerate(references())]
    losses = [SequenceLoss(20 + i % 7, 10 + i % 3) for i in range(len(rows))]
    return significance.answers(scoring.scored_rows(rows, predictions, losses), SIGNATURE)


GOOD, CLOSE, BAD = spoilt(0.2, 1), spoilt(0.2, 2), spoilt(0.5, 3)
DRAWN = significance.resamples(60)


def test_values_are_those_of_the_whole_test_set():
    found = significance.scores([answers(GOOD)], DRAWN)
    whole = scoring.score(GOOD, references())
    assert found["bleu"][0] == pytest.approx(whole["bleu"])
    assert found["rouge_l"][0] == pytest.approx(whole["rougeL"], abs=0.01)
    assert found["test_loss"][0] == pytest.approx(
        sum(20 + i % 7 for i in range(60)) / sum(10 + i % 3 for i in range(60))
    )


def test_a_resample_scores_like_the_examples_it_drew():
    draw = DRAWN[7]
    rows = [i for i, times in enumerate(draw) for _ in range(times)]
    expected = sacrebleu.corpus_bleu([GOOD[i] for i in rows], [[references()[i] for i in rows]]).score
    assert significance.scores([answers(GOOD)], DRAWN)["bleu"][7] == pytest.approx(expected)


def test_bleus_interval_and_p_are_near_sacrebleus():
    """Its p by approximate randomisation, that is: its bootstrap's is one-sided."""
    others = {"close": CLOSE, "worse": spoilt(0.25, 9), "bad": BAD}
    good = significance.scores([answers(GOOD)], DRAWN)["bleu"]
    systems = [("good", GOOD), *others.items()]
    metric = {"BLEU": sacrebleu.BLEU(references=[references()])}
    _, intervals = PairedTest(systems, metric, references=None, test_type="bs", n_samples=2000)()
    _, randomised = PairedTest(systems, metric, references=None, test_type="ar", n_samples=5000)()
    mine = significance.estimate(good)
    assert mine.value == pytest.approx(intervals["BLEU"][0].score)
    assert (mine.high - mine.low) / 2 == pytest.approx(intervals["BLEU"][0].ci, rel=0.15)
    for predictions, theirs in zip(others.values(), randomised["BLEU"][1:], strict=True):
        found = significance.scores([answers(predictions)], DRAWN)["bleu"]
        assert significance.p_value(found - good, 60) == pytest.approx(theirs.p_value, abs=0.03)


def test_several_seeds_are_averaged():
    each = [significance.scores([answers(p)], DRAWN)["rouge_l"] for p in (GOOD, BAD)]
    numpy.testing.assert_allclose(significance.scores([answers(GOOD), answers(BAD)], DRAWN)["rouge_l"], sum(each) / 2)


def test_equal_answers_are_never_told_apart():
    same = significance.scores([answers(GOOD)], DRAWN)
    for score in SCORES:
        difference = same[score] - same[score]
        assert significance.p_value(difference, 60) == 1.0
        assert not significance.estimate(difference).excludes(0)
