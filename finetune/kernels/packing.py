"""Packed batches: sequences of different lengths end to end in one row, without padding between them."""

from collections.abc import Callable, Iterable, Iterator
from heapq import nlargest
from itertools import accumulate, chain
from typing import TypeVar

import torch
from torch.nn.functional import pad

from finetune.data.prepared import IGNORE
from finetune.kernels.attention import ROUND_ROWS_TO

Batch = dict[str, torch.Tensor]
"""input_ids, labels, position_ids: (1, tokens); lengths: (sequences)."""

Item = TypeVar("Item")

TOKENS_PER_FORWARD = 1024
"""Tokens of a packed forward in evaluation at most, unless a single sequence is longer."""


def pack(rows: list[dict]) -> Batch:
    """Put the `rows` (input_ids, labels) end to end.

    Positions start at 0 in each sequence. A sequence's first token is never a target: it would be
    predicted from the sequence before.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    labels = torch.tensor(list(chain.from_iterable(row["labels"] for row in rows)))
    # Trainer counts the labels of the whole batch, sequences unknown to it: this makes its count that of the targets.
    labels[[0, *accumulate(lengths[:-1])]] = IGNORE
    return {
        "input_ids": torch.tensor([list(chain.from_iterable(row["input_ids"] for row in rows))]),
        "labels": labels[None],
        "position_ids": torch.tensor([list(chain.from_iterable(map(range, lengths)))]),
        "lengths": torch.tensor(lengths),
    }


def selected(batch: Batch, places: list[int]) -> Batch:
    """The sequences of `batch` at these `places` among them, end to end."""
    lengths = batch["lengths"].tolist()
    parts = {key: batch[key].split(lengths, dim=1) for key in ("input_ids", "labels", "position_ids")}
    chosen = {key: torch.cat([split[place] for place in places], dim=1) for key, split in parts.items()}
    return chosen | {"lengths": batch["lengths"][places]}


def filler() -> Batch:
    """A micro-batch without targets, the smallest that can go through a model."""
    row = torch.zeros(1, ROUND_ROWS_TO, dtype=torch.int64)
    return {
        "input_ids": row,
        "labels": torch.full_like(row, IGNORE),
        "position_ids": row,
        "lengths": torch.tensor([ROUND_ROWS_TO]),
    }


def longest_micro_batch(lengths: Iterable[int], sequences: int, tokens: int) -> int:
    """Tokens of the longest micro-batch that `sequences` of these `lengths` can make, with `tokens` as in `micro_batches`."""
    longest = nlargest(sequences, lengths)
    most = min(sum(longest), max(tokens, longest[0]))
    return most + -most % ROUND_ROWS_TO


def micro_batches(batch: Batch, tokens: int) -> Iterator[Batch]:
    """Split `batch` into parts of whole sequences that go through the model one by one.

    A part has at most `tokens` tokens, unless a single sequence is longer, and is filled up to a
    multiple of `ROUND_ROWS_TO` with a sequence that has no targets.
    """
    end = 0
    for group in grouped(batch["lengths"].tolist(), int, tokens):
        start, end = end, end + sum(group)
        yield _filled({key: batch[key][:, start:end] for key in ("input_ids", "labels", "position_ids")}, group)


def grouped(items: Iterable[Item], length: Callable[[Item], int], tokens: int) -> Iterator[list[Item]]:
    """Group `items`, each of `length` tokens, into micro-batches of at most `tokens` tokens, or of one longer sequence.

    Only one micro-batch is held at a time.
    """
    group: list[Item] = []
    total = 0
    for item in items:
        if group and total + length(item) > tokens:
            yield group
            group, total = [], 0
        group.append(item)
        total += length(item)
    if group:
        yield group


def micro_batch_sizes(lengths: Iterable[int], tokens: int) -> list[int]:
    """Tokens of each micro-batch that sequences of `lengths` make, filler included."""
    return [sum(group) + -sum(group) % ROUND_ROWS_TO for group in grouped(lengths, int, tokens)]


def _filled(rows: Batch, lengths: list[int]) -> Batch:
    # As a sequence, so that no other attends to it; without targets it costs no logits and adds no loss.
    spare = -sum(lengths) % ROUND_ROWS_TO
    filled = {key: pad(value, (0, spare), value=IGNORE if key == "labels" else 0) for key, value in rows.items()}
    return filled | {"lengths": torch.tensor([*lengths, spare] if spare else lengths)}
