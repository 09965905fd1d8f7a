"""The passes that a run makes, told from the lengths of its sequences: memory depends on the longest, time on all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import params
from finetune.data import prepared
from finetune.kernels.attention import ROUND_ROWS_TO
from finetune.kernels.packing import longest_micro_batch
from finetune.places import FACTS

if TYPE_CHECKING:
    from datasets import Dataset

SAMPLE = 1000
"""Records of which targets are counted."""
ASSUMED_TARGETS = 0.6
"""Share of the tokens that are a response's, where no data is prepared: about that of Alpaca's records."""


@dataclass(frozen=True)
class Records:
    """The training split."""

    lengths: tuple[int, ...]
    """Tokens of each, the longest last."""
    targets: float
    """Share of the tokens that have a loss."""
    known: bool
    """Read from prepared data; else every record is taken to be as long as data.max_length allows."""

    def cut(self, max_length: int) -> Records:
        """With records of at most `max_length` tokens."""
        return replace(self, lengths=tuple(min(one, max_length) for one in self.lengths))


@dataclass(frozen=True)
class Pass:
    """The largest pass."""

    tokens: int
    longest: int
    """Tokens of its longest sequence."""
    room: int
    """Tokens that the layers' shared memory is laid out for: before training the longest and the shortest sequence go
    through together (`models.check_model`)."""
    targets: int
    accumulated: bool
    """Another pass of the same step comes before it, whose gradients are there."""
    shapes: int
    """Different lengths of sequences."""


def records(p: params.Params, folder: Path) -> Records:
    """Those of the prepared data in `folder` if there are any, else as many as `p` asks for."""
    if not (folder / FACTS).exists():
        count = max(1, round(p.data.size * (1 - p.data.validation - p.data.test)))
        return Records((p.data.max_length,) * count, ASSUMED_TARGETS, known=False)
    from datasets import load_from_disk

    return records_of(load_from_disk(str(folder))["train"]).cut(p.data.max_length)


def records_of(split: Dataset) -> Records:
    """Of a prepared training split (input_ids, labels)."""
    some = split[:SAMPLE]["labels"]
    targets = sum(label != prepared.IGNORE for labels in some for label in labels)
    return Records(tuple(sorted(prepared.lengths(split))), targets / sum(map(len, some)), known=True)


def largest(data: Records, train: params.Train) -> Pass:
    """The largest pass of a run over `data`."""
    tokens = longest_micro_batch(data.lengths, train.batch_size, train.tokens_per_micro_batch)
    return sized(data, train, tokens, data.lengths[-1])


def sized(data: Records, train: params.Train, tokens: int, longest: int) -> Pass:
    """A pass of `tokens` tokens of sequences of at most `longest`."""
    longest_batch = sum(data.lengths[-train.batch_size :])
    together = longest + (data.lengths[0] if data.known else 0)
    return Pass(
        tokens=tokens,
        longest=longest,
        room=max(tokens, together + -together % ROUND_ROWS_TO),
        targets=round(tokens * data.targets),
        accumulated=train.gradient_accumulation > 1 or longest_batch > tokens,
        shapes=len(set(data.lengths)),
    )
