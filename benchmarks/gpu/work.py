"""What the trainers are given here: random tokens in sequences as long as Alpaca's, over a model of random weights."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contenders import Work

from finetune import params
from finetune.methods import METHODS

from . import random_models

if TYPE_CHECKING:
    from .shapes import Shape

MEDIAN, NINTH_DECILE, LONGEST = 143, 391, 512
"""Tokens of an Alpaca record (SmolLM2's tokenizer, the 999 of the default source), and data.max_length."""

PROMPT = 0.45
"""Share of a record's tokens that is prompt, without loss."""


@dataclass(frozen=True)
class RandomWork(Work):
    """Work over a model that is made when a trainer asks for it."""

    shape: Shape

    def trainable(self, method: str, tokens: int) -> Any:
        from finetune.models.adapters import as_trained, weights_dtype

        base = self.plain(method, weights_dtype(METHODS[method]))
        return as_trained(base, METHODS[method], self.settings.lora, tokens)

    def plain(self, method: str, dtype: Any) -> Any:
        return random_models.make(self.shape, dtype, self.settings.quantization if METHODS[method].quantized else None)


def over(shape: Shape, records: int, *, length: int | None = None, **train: Any) -> RandomWork:
    """Work over `records` records, each of `length` tokens or as long as Alpaca's; `train` changes params.train."""
    from datasets import Dataset

    from finetune.models.base import Base

    p = params.load()
    words = shape.config().vocab_size
    rows = list(_rows(records + 4, words, length))
    return RandomWork(
        base=Base(Path("random")),
        tokenizer=random_models.tokenizer(words),
        train=Dataset.from_list(rows[4:]),
        held_out=Dataset.from_list(rows[:4]),
        settings=replace(p, train=replace(p.train, **train)),
        shape=shape,
    )


def _rows(count: int, words: int, length: int | None) -> Iterator[dict[str, list[int]]]:
    draw = random.Random(0)
    spread = math.log(NINTH_DECILE / MEDIAN) / 1.2816  # the normal distribution's ninth decile
    for _ in range(count):
        tokens = length or min(LONGEST, max(16, round(draw.lognormvariate(math.log(MEDIAN), spread))))
        ids = [draw.randrange(1, words) for _ in range(tokens)]
        prompt = round(PROMPT * tokens)
        yield {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}
