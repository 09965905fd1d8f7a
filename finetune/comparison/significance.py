"""Uncertainty of scores over the test examples: bootstrap intervals and paired tests.

All runs are scored on the same resamples of the examples (Efron 1979), so that differences and shares of gains get
intervals as well. With several seeds a score is the mean over the seeds' models; the spread over seeds is another
matter, and not in these intervals.
"""

from dataclasses import dataclass

import numpy
import sacrebleu

from finetune.evaluation import bleu

RESAMPLES = 5000
SIGNIFICANCE_LEVEL = 0.05
"""A difference counts where its paired test has a smaller p."""

FEW_EXAMPLES = 20
"""Below these the bootstrap's intervals are too narrow to be believed: at one example they have no width at all."""


@dataclass(frozen=True)
class Answers:
    """What a run's scores are made of; each array has one row a test example."""

    ngrams: numpy.ndarray
    """(examples, 10): matched and all n-grams of orders 1 to 4, then lengths of answer and reference."""
    effective_order: bool
    """Whether BLEU leaves out the orders of which the answers have no n-gram."""
    rouge_l: numpy.ndarray
    nats: numpy.ndarray
    """Summed cross-entropy of the reference."""
    tokens: numpy.ndarray


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval."""

    value: float
    low: float
    """2.5th percentile of the resamples."""
    high: float
    """97.5th percentile."""

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the interval."""
        return not self.low <= value <= self.high


def answers(rows: list[dict], bleu_signature: str) -> Answers:
    """From the rows of a predictions file, and the signature of the BLEU that they were scored by.

    Raises UserError if that BLEU's tokenizer can't run here.
    """
    metric = bleu.from_signature(bleu_signature)
    return Answers(
        ngrams=numpy.array([_ngrams(metric, row["prediction"], row["reference"]) for row in rows]),
        effective_order=metric.effective_order,
        rouge_l=numpy.array([row["rouge_l"] for row in rows], dtype=float),
        nats=numpy.array([row["nats"] for row in rows], dtype=float),
        tokens=numpy.array([row["tokens"] for row in rows]),
    )


def _ngrams(metric: sacrebleu.BLEU, prediction: str, reference: str) -> list[int]:
    score = bleu.corpus(metric, [prediction], [reference])
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def resamples(examples: int, seed: int = 0) -> numpy.ndarray:
    """(RESAMPLES + 1, examples): how often each example is drawn. The first row is the test set itself."""
    drawn = numpy.random.default_rng(seed).multinomial(examples, [1 / examples] * examples, size=RESAMPLES)
    return numpy.vstack([numpy.ones(examples, dtype=int), drawn])


def scores(runs: list[Answers], drawn: numpy.ndarray) -> dict[str, numpy.ndarray]:
    """Each of `measures.SCORES` under each row of `drawn`, mean over `runs`: arrays of shape (rows of `drawn`)."""
    return {
        "bleu": numpy.mean([_bleu(drawn @ run.ngrams, run.effective_order) for run in runs], axis=0),
        "rouge_l": numpy.mean([drawn @ run.rouge_l / drawn.sum(axis=1) for run in runs], axis=0),
        "test_loss": numpy.mean([(drawn @ run.nats) / (drawn @ run.tokens) for run in runs], axis=0),
    }


def _bleu(ngrams: numpy.ndarray, effective_order: bool) -> list[float]:
    return [
        sacrebleu.BLEU.compute_bleu(
            correct=row[:4],
            total=row[4:8],
            sys_len=row[8],
            ref_len=row[9],
            smooth_method="exp",
            effective_order=effective_order,
        ).score
        for row in ngrams.tolist()
    ]


def estimate(values: numpy.ndarray) -> Estimate:
    """The value on the test set (first of `values`) and its 95% percentile interval over the resamples (the others).

    Resamples on which a quotient isn't defined are left out.
    """
    low, high = numpy.percentile(values[1:][numpy.isfinite(values[1:])], [2.5, 97.5])
    return Estimate(float(values[0]), float(low), float(high))


def p_value(differences: numpy.ndarray, examples: int) -> float:
    """Of no difference, two-sided, by the paired bootstrap (Koehn 2004; shift method of Riezler & Maxwell 2005, section 3).

    The share of resamples whose difference, shifted to mean 0, is at least as large as the one observed, either way.
    sacreBLEU's own p is one-sided: it shifts the differences after it has dropped their signs. Never less than what
    `examples` paired answers can show by their signs: 2 in 2^examples. The resamples of one example are all alike, and
    would make any difference certain.
    """
    observed, drawn = abs(differences[0]), differences[1:]
    beyond = numpy.sum(numpy.abs(drawn - drawn.mean()) >= observed)
    # Counting the observed sample itself keeps p above 0 (Davison & Hinkley 1997, section 4.2).
    return float(max((beyond + 1) / (len(drawn) + 1), 2.0 ** (1 - examples)))
