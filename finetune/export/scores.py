"""What an export keeps of the model before it: loss on the test examples, and greedy answers, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy

from finetune.comparison.significance import FEW_EXAMPLES, Estimate, estimate, resamples
from finetune.data import prepared
from finetune.evaluation import scoring
from finetune.kernels.attention import ATTENTION_NAME
from finetune.kernels.loss import sequence_losses
from finetune.kernels.packing import TOKENS_PER_FORWARD
from finetune.models.check_model import check_model

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel

    from finetune.models.base import Base


@dataclass(frozen=True)
class Measured:
    """One model on the test examples."""

    name: str
    nats: numpy.ndarray | None
    """(examples): summed cross-entropy of each response; None of a program that tells no losses."""
    answers: list[str]
    """To the first prompts of the test set."""
    base: Base | None = None
    """What weights an adapter trained over four bits was merged onto, or put over, in 16 bits or as they are."""


class TestSet:
    """The test examples, and the prompts of the first of them."""

    def __init__(self, test: Dataset, prompts: int) -> None:
        self._test = test
        self.prompts = prepared.prompt_ids(test.select(range(min(prompts, len(test)))))
        self.tokens = numpy.array([sum(label != prepared.IGNORE for label in labels[1:]) for labels in test["labels"]])

    def __len__(self) -> int:
        return len(self.tokens)

    def nats(self, model: PreTrainedModel | PeftModel) -> numpy.ndarray:
        """The loss of each example under `model`, which takes our attention from here on."""
        if model.config._attn_implementation != ATTENTION_NAME:
            model.set_attn_implementation(ATTENTION_NAME)
        packed = check_model(model, prepared.extremes(self._test), prepared.highest_token(self._test))
        losses = sequence_losses(model, self._test, TOKENS_PER_FORWARD if packed else 1)
        scoring.check_losses(self._test, losses)
        return numpy.array([loss.nats for loss in losses])

    def loss(self, measured: Measured) -> float | None:
        """Mean loss in nats per response token."""
        return None if measured.nats is None else float(measured.nats.sum() / self.tokens.sum())

    def difference(self, after: Measured, before: Measured) -> Estimate | None:
        """Loss of `after` less that of `before`, with its 95% interval over the examples; None if there is none.

        The interval of few examples has no width to speak of: it is then infinite.
        """
        if after.nats is None or before.nats is None:
            return None
        drawn = resamples(len(self))
        found = estimate((drawn @ (after.nats - before.nats)) / (drawn @ self.tokens))
        return found if len(self) >= FEW_EXAMPLES else Estimate(found.value, float("-inf"), float("inf"))


def unlike(after: Measured, before: Measured) -> int:
    """How many answers differ."""
    return sum(one != other for one, other in zip(after.answers, before.answers, strict=True))
