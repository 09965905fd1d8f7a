"""sacreBLEU's BLEU (Papineni et al. 2002; Post 2018) as all scores and intervals here use it."""

import sacrebleu
from sacrebleu.metrics.bleu import BLEUScore

from finetune.errors import UserError
from finetune.evaluation.tokenisation import normalised

ORDER = 4
"""Longest n-grams that count."""


def for_references(tokenize: str, references: list[str]) -> sacrebleu.BLEU:
    """The metric for a test set, by the name of sacreBLEU's tokenizer.

    Where no reference has four words, only the orders that the answers have count (`eff:yes` in the signature):
    plain BLEU would be 0 whatever the answers are. Raises UserError if the tokenizer can't run here.
    """
    metric = _metric(tokenize, effective_order=False)
    if any(len(metric.tokenizer(normalised(text)).split()) >= ORDER for text in references):
        return metric
    return _metric(tokenize, effective_order=True)


def from_signature(signature: str) -> sacrebleu.BLEU:
    """The metric that has this signature. Raises UserError if its tokenizer can't run here."""
    fields = dict(field.split(":", 1) for field in signature.split("|"))
    # mecab's tokenizers sign with the version of their dictionary behind the name.
    tokenize = next(name for name in sacrebleu.BLEU.TOKENIZERS if f"{fields['tok']}-".startswith(f"{name}-"))
    return _metric(tokenize, effective_order=fields["eff"] == "yes")


def _metric(tokenize: str, *, effective_order: bool) -> sacrebleu.BLEU:
    try:
        return sacrebleu.BLEU(tokenize=tokenize, effective_order=effective_order)
    # sacreBLEU raises these if packages are missing, or if a dictionary isn't the one it knows.
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = " ".join(str(error).split()) or "its dictionary is another one"
        raise UserError(f"eval.tokenize: {tokenize} can't run here ({reason}); choose auto or char") from None


def corpus(metric: sacrebleu.BLEU, answers: list[str], references: list[str]) -> BLEUScore:
    """BLEU of all answers together, one reference each."""
    return metric.corpus_score([*map(normalised, answers)], [[*map(normalised, references)]])
