"""Batches of a prepared split: sequences of unlike length end to end in one row, without padding between them."""

from collections.abc import Iterable, Iterator
from itertools import accumulate, chain

import torch
from torch.nn.functional import pad

from finetune.data.prepared import IGNORE
from finetune.kernels.attention import ROUND_ROWS_TO

Batch = dict[str, torch.Tensor]
"""input_ids, labels, position_ids: (1, tokens); lengths: (sequences)."""


TOKENS_PER_PASS = 1024
"""Tokens of a packed pass in evaluation at most, unless a single sequence is longer."""


def pack(rows: list[dict]) -> Batch:
    """The `rows` (input_ids, labels) end to end.

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
    """A micro-batch without targets, the least that a pass can have."""
    row = torch.zeros(1, ROUND_ROWS_TO, dtype=torch.int64)
    return {
        "input_ids": row,
        "labels": torch.full_like(row, IGNORE),
        "position_ids": row,
        "lengths": torch.tensor([ROUND_ROWS_TO]),
    }


def longest_pass(lengths: Iterable[int], sequences: int, tokens: int) -> int:
    """Tokens of the longest micro-batch that `sequences` of `lengths` can make, by `tokens` as in `micro_batches`."""
    longest = sorted(lengths)[-sequences:]
    most = min(sum(longest), max(tokens, longest[-1]))
    return most + -most % ROUND_ROWS_TO


def micro_batches(batch: Batch, tokens: int) -> Iterator[Batch]:
    """`batch` in parts of whole sequences that go through the model one by one.

    A part has at most `tokens` tokens, unless a single sequence is longer, and is filled up to a
    multiple of `ROUND_ROWS_TO` with a sequence that has no targets.
    """
    end = 0
    for group in grouped(batch["lengths"].tolist(), tokens):
        start, end = end, end + sum(group)
        yield _filled({key: batch[key][:, start:end] for key in ("input_ids", "labels", "position_ids")}, group)


def grouped(lengths: Iterable[int], tokens: int) -> list[list[int]]:
    """`lengths` of sequences in passes of at most `tokens` tokens in all, or of one sequence that is longer."""
    groups: list[list[int]] = []
    for length in lengths:
        if groups and sum(groups[-1]) + length <= tokens:
            groups[-1].append(length)
        else:
            groups.append([length])
    return groups


def _filled(rows: Batch, lengths: list[int]) -> Batch:
    # A sequence of its own, so that no other attends to it; without targets it costs no logits and adds no loss.
    spare = -sum(lengths) % ROUND_ROWS_TO
    filled = {key: pad(value, (0, spare), value=IGNORE if key == "labels" else 0) for key, value in rows.items()}
    return filled | {"lengths": torch.tensor([*lengths, spare] if spare else lengths)}
