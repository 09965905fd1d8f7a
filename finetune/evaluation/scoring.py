"""BLEU and ROUGE as `evaluate` metrics that need no hub. Scores run from 0 to 100."""

from collections.abc import Iterable
from importlib.metadata import version

import datasets
import evaluate
import sacrebleu
from rouge_score import rouge_scorer

from finetune.kernels.loss import SequenceLoss

_FEATURES = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})


class Bleu(evaluate.Metric):
    """Corpus BLEU (Papineni et al. 2002) by sacreBLEU (Post 2018), with its signature."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__, citation="", inputs_description="one reference each", features=_FEATURES
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict:
        metric = sacrebleu.BLEU()
        score = metric.corpus_score(predictions, [references]).score
        return {"bleu": score, "bleu_signature": str(metric.get_signature())}


class Rouge(evaluate.Metric):
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) by rouge-score, without stemming."""

    NAMES = ("rouge1", "rouge2", "rougeL")

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__, citation="", inputs_description="one reference each", features=_FEATURES
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict:
        each = [rouge_each(*pair) for pair in zip(references, predictions, strict=True)]
        means = {name: sum(scores[name] for scores in each) / len(each) for name in self.NAMES}
        return means | {"rouge_signature": f"rouge-score:{version('rouge-score')}|f1|stem:no"}


_SCORER = rouge_scorer.RougeScorer(Rouge.NAMES, use_stemmer=False)


def rouge_each(reference: str, prediction: str) -> dict[str, float]:
    """F1 of each of `Rouge.NAMES` for one pair, 0 to 100."""
    return {name: 100 * score.fmeasure for name, score in _SCORER.score(reference, prediction).items()}


def score(predictions: list[str], references: list[str]) -> dict:
    """BLEU, ROUGE-1, ROUGE-2 and ROUGE-L over all pairs, with the signatures that say how they were made."""
    return evaluate.combine([Bleu(), Rouge()]).compute(predictions=predictions, references=references)


def beside(rows: Iterable[dict], answers: list[str], losses: list[SequenceLoss]) -> list[dict]:
    """Each answer beside its prompt and reference, with its own ROUGE-L and the reference's loss."""
    return [
        {
            "record": row["record"],
            "prompt": row["prompt"],
            "reference": row["reference"],
            "prediction": answer,
            "rouge_l": round(rouge_each(row["reference"], answer)["rougeL"], 2),
            "nats": round(loss.nats, 4),
            "tokens": loss.tokens,
        }
        for row, answer, loss in zip(rows, answers, losses, strict=True)
    ]
