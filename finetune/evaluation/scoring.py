"""BLEU and ROUGE as `evaluate` metrics that need no hub and write no file. Scores run from 0 to 100."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING

import datasets
import evaluate
import sacrebleu
from rouge_score import rouge_scorer, tokenizers

from finetune.errors import UserError
from finetune.evaluation import bleu
from finetune.evaluation.tokenisation import choose, normalised, words

if TYPE_CHECKING:
    from finetune.kernels.loss import SequenceLoss


class _InMemory(evaluate.Metric):
    """A metric of texts that writes no file: answers may have taken hours, and a cache may not be writable."""

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _build_data_dir(self) -> str:
        # evaluate makes this folder, in the user's home, even for a metric that is kept in memory.
        return ""

    def _info(self) -> evaluate.MetricInfo:
        texts = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description="one reference each",
            features=datasets.Features(texts),
        )


class Bleu(_InMemory):
    """Corpus BLEU (Papineni et al. 2002) by sacreBLEU (Post 2018), with its signature."""

    def __init__(self, metric: sacrebleu.BLEU | None = None) -> None:
        self.metric = metric or sacrebleu.BLEU()
        super().__init__()

    def _compute(self, predictions: list[str], references: list[str]) -> dict:
        score = bleu.corpus(self.metric, predictions, references).score
        return {"bleu": score, "bleu_signature": str(self.metric.get_signature())}


class Rouge(_InMemory):
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) by rouge-score, without stemming."""

    NAMES = ("rouge1", "rouge2", "rougeL")

    def __init__(self, *, any_script: bool = False) -> None:
        self.any_script = any_script
        super().__init__()

    def each(self, reference: str, prediction: str) -> dict[str, float]:
        """F1 of each of `NAMES` for one pair, 0 to 100."""
        return _rouge(reference, prediction, self.any_script)

    def _compute(self, predictions: list[str], references: list[str]) -> dict:
        each = [self.each(*pair) for pair in zip(references, predictions, strict=True)]
        means = {name: sum(scores[name] for scores in each) / len(each) for name in self.NAMES}
        signature = f"rouge-score:{version('rouge-score')}|f1|stem:no" + ("|tok:unicode" if self.any_script else "")
        return means | {"rouge_signature": signature}


# Both the rows and their mean ask for a pair, and its longest common subsequence takes the square of its length.
@cache
def _rouge(reference: str, prediction: str, any_script: bool) -> dict[str, float]:
    scorer = rouge_scorer.RougeScorer(Rouge.NAMES, tokenizer=_AnyScript() if any_script else None)
    scores = scorer.score(normalised(reference), normalised(prediction))
    return {name: 100 * score.fmeasure for name, score in scores.items()}


class _AnyScript(tokenizers.Tokenizer):
    """`words` as a tokenizer of rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def score(predictions: list[str], references: list[str], tokenize: str = "auto") -> dict:
    """BLEU, ROUGE-1, ROUGE-2 and ROUGE-L over all pairs, with the signatures that say how they were made.

    `tokenize` is `eval.tokenize`. Raises UserError if that can't run here.
    """
    chosen = choose(tokenize, references)
    metrics = [Bleu(bleu.for_references(chosen.bleu, references)), Rouge(any_script=chosen.any_script)]
    return evaluate.combine(metrics).compute(predictions=predictions, references=references)


def check_losses(rows: Iterable[dict], losses: list[SequenceLoss]) -> None:
    """Raise UserError if a loss isn't a finite number: every score of such a model would be noise."""
    for row, loss in zip(rows, losses, strict=True):
        if not math.isfinite(loss.nats):
            raise UserError(
                f"the model's loss on test record {row['record']} is {loss.nats}: its weights aren't finite, or its "
                f"sums overflow; train again with a lower methods.….learning_rate, or take another base model"
            )


def perplexity(loss: float) -> float | None:
    """e to the `loss` (nats per token), to three digits; None where that is more than a float holds."""
    try:
        return round(math.exp(loss), 3)
    except OverflowError:
        return None


def scored_rows(
    rows: Iterable[dict], answers: list[str], losses: list[SequenceLoss], tokenize: str = "auto"
) -> list[dict]:
    """One row for each answer: its prompt and reference, its ROUGE-L, and the reference's loss."""
    rows = list(rows)
    rouge = Rouge(any_script=choose(tokenize, [row["reference"] for row in rows]).any_script)
    return [
        {
            "record": row["record"],
            "prompt": row["prompt"],
            "reference": row["reference"],
            "prediction": answer,
            "rouge_l": round(rouge.each(row["reference"], answer)["rougeL"], 2),
            "nats": round(loss.nats, 4),
            "tokens": loss.tokens,
        }
        for row, answer, loss in zip(rows, answers, losses, strict=True)
    ]


def report(
    answers: list[str], references: list[str], losses: list[SequenceLoss], at_best: dict, tokenize: str
) -> tuple[dict, dict]:
    """The few figures of the answers that people look at, and the other ones.

    `at_best` are the scores of the references themselves.
    """
    from finetune.kernels.loss import mean_loss

    scores = score(answers, references, tokenize)
    test_loss = mean_loss(losses)
    figures = {
        "bleu": round(scores["bleu"], 2),
        "rouge_l": round(scores["rougeL"], 2),
        "test_loss": round(test_loss, 4),
    }
    facts = {
        "rouge_1": round(scores["rouge1"], 2),
        "rouge_2": round(scores["rouge2"], 2),
        "perplexity": perplexity(test_loss),
        "bleu_signature": scores["bleu_signature"],
        "rouge_signature": scores["rouge_signature"],
        "bleu_at_best": round(at_best["bleu"], 2),
        "rouge_l_at_best": round(at_best["rougeL"], 2),
        "empty_answers": answers.count(""),
    }
    return figures, facts
