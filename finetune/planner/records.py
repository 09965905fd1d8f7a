"""The records that a run trains on, and its largest micro-batch: memory depends on the longest, time on all."""

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
"""Records whose labelled tokens are counted."""
ASSUMED_TARGETS = 0.6
"""Share of labelled tokens where no data is prepared: about that of Alpaca's records."""


@dataclass(frozen=True)
class TrainingRecords:
    """The lengths of the training split."""

    lengths: tuple[int, ...]
    """Tokens of each record, in ascending order."""
    targets: float
    """Share of the tokens that have a loss."""
    known: bool
    """Read from prepared data; otherwise every record is assumed to be as long as data.max_length allows."""

    def cut(self, max_length: int) -> TrainingRecords:
        """The same records with at most `max_length` tokens each."""
        return replace(self, lengths=tuple(min(one, max_length) for one in self.lengths))


@dataclass(frozen=True)
class MicroBatch:
    """The largest micro-batch of a run, in tokens."""

    tokens: int
    longest: int
    """Its longest sequence."""
    room: int
    """Tokens that the layers' shared memory is laid out for: before training the longest and the shortest sequence go
    through the model together (`models.check_model`)."""
    targets: int
    """Tokens that have a loss."""
    accumulated: bool
    """Whether gradients of an earlier micro-batch of the same step exist."""
    shapes: int
    """How many different sequence lengths the run has."""


def planned_records(p: params.Params, folder: Path) -> TrainingRecords:
    """The training records in `folder` if data is prepared there, else as many as `p` asks for, each as long as allowed."""
    if not (folder / FACTS).exists():
        count = max(1, round(p.data.size * (1 - p.data.validation - p.data.test)))
        return TrainingRecords((p.data.max_length,) * count, ASSUMED_TARGETS, known=False)
    from datasets import load_from_disk

    return records_of(load_from_disk(str(folder))["train"]).cut(p.data.max_length)


def records_of(split: Dataset) -> TrainingRecords:
    """The records of a prepared training split (input_ids, labels)."""
    some = split[:SAMPLE]["labels"]
    targets = sum(label != prepared.IGNORE for labels in some for label in labels)
    return TrainingRecords(tuple(sorted(prepared.lengths(split))), targets / sum(map(len, some)), known=True)


def largest_micro_batch(records: TrainingRecords, train: params.Train) -> MicroBatch:
    """The largest micro-batch of a run over `records`."""
    tokens = longest_micro_batch(records.lengths, train.batch_size, train.tokens_per_micro_batch)
    return micro_batch(records, train, tokens, records.lengths[-1])


def micro_batch(records: TrainingRecords, train: params.Train, tokens: int, longest: int) -> MicroBatch:
    """A micro-batch of `tokens` tokens in sequences of at most `longest`."""
    longest_batch = sum(records.lengths[-train.batch_size :])
    together = longest + (records.lengths[0] if records.known else 0)
    return MicroBatch(
        tokens=tokens,
        longest=longest,
        room=max(tokens, together + -together % ROUND_ROWS_TO),
        targets=round(tokens * records.targets),
        accumulated=train.gradient_accumulation > 1 or longest_batch > tokens,
        shapes=len(set(records.lengths)),
    )
