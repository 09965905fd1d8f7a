"""Records sampled, encoded as tokenised rows, and split."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from finetune.data.prepared import IGNORE, SPLITS
from finetune.data.prompts import Segment, Template
from finetune.data.records import Record, Records
from finetune.data.tokens import TemplateError
from finetune.errors import UserError

BATCH = 256
"""Records that are tokenised together."""


@dataclass(frozen=True)
class Encoded:
    """A record as a row of the dataset, and its last response before it was cut."""

    row: dict
    response: Segment


def encode(record: Record, segments: Sequence[Segment], max_length: int) -> Encoded | None:
    """One row: `input_ids` and `labels` (-100 outside the responses), both of at most `max_length` tokens.

    A response that doesn't fit is cut, and then has no end token; what follows it is left out. `reference` is the last
    response that is left, `prompt` the text before it. Returns None if the first prompt leaves no room for a response.
    """
    ids: list[int] = []
    labels: list[int] = []
    kept = 0
    for prompt, response in zip(segments[::2], segments[1::2], strict=True):
        room = max_length - len(ids) - len(prompt.ids)
        if room < 1:
            break
        ids += prompt.ids + response.ids[:room]
        labels += [IGNORE] * len(prompt.ids) + response.ids[:room]
        kept += 2
    if not kept:
        return None
    row = {
        "input_ids": ids,
        "labels": labels,
        "truncated": len(ids) < sum(len(segment.ids) for segment in segments),
        "prompt": "".join(segment.text for segment in segments[: kept - 1]),
        "reference": segments[kept - 1].said,
        "record": record.position,
    }
    return Encoded(row, segments[kept - 1])


@dataclass
class Tally:
    """Counts that `sample` makes while its rows are consumed."""

    dropped: Counter[str] = field(default_factory=Counter)
    """Why records weren't used: 'prompt_too_long', 'template_refused'."""
    made_of: Counter[str] = field(default_factory=Counter)
    """Form or source to the number of its rows."""


def sample(
    records: Records,
    template: Template,
    tally: Tally,
    *,
    size: int,
    seed: int,
    max_length: int,
    weights: dict[str, float],
    on_bad_record: str,
) -> Iterator[Encoded]:
    """Encode `size` records (or all, if there are fewer) in an order drawn by `seed`.

    `weights` gives each source its share of `size`; without weights, all records are drawn alike. Raises UserError for
    the first record that the template refuses if `on_bad_record` is 'error', or if it refuses all.
    """
    # A source without any row is counted as well.
    tally.made_of.update({f"source_{source}": 0 for source in {*weights, *records.sources}})
    done, refusal = 0, ""
    left = Counter(_quotas(weights, size)) if weights else Counter({"": size})
    for batch in _batches(_drawn(records, seed), left, weighted=bool(weights)):
        for record, segments in zip(batch, template.segments([record.turns for record in batch]), strict=True):
            if isinstance(segments, TemplateError):
                refusal = f"{record.position}: data.template can't take the record: {segments}"
                if on_bad_record == "error":
                    raise UserError(refusal)
                tally.dropped["template_refused"] += 1
                continue
            encoded = encode(record, segments, max_length)
            if encoded is None:
                tally.dropped["prompt_too_long"] += 1
                continue
            done += 1
            left[record.source if weights else ""] -= 1
            tally.made_of.update([f"form_{record.form}", *([f"source_{record.source}"] if record.source else [])])
            yield encoded
    if not done and refusal:
        raise UserError(refusal)


def _drawn(records: Records, seed: int) -> Iterator[Record]:
    """All records, in an order drawn by `seed`."""
    order = array("Q", range(len(records.good)))
    random.Random(seed).shuffle(order)
    return (records.good[index] for index in order)


def _batches(records: Iterator[Record], left: Counter[str], *, weighted: bool) -> Iterator[list[Record]]:
    """The records in batches, each with no more records of a source than are `left` to it.

    The caller lowers `left` before it asks for the next batch, which starts where the last one ended.
    """
    batch: list[Record] = []
    asked: Counter[str] = Counter()
    for record in records:
        source = record.source if weighted else ""
        # The caller may drop some of the batch, and so make room for this record.
        if batch and (len(batch) == BATCH or asked[source] == left[source]):
            yield batch
            batch, asked = [], Counter()
        if not left.total():
            return
        if left[source]:
            batch.append(record)
            asked[source] += 1
    if batch:
        yield batch


def _quotas(weights: dict[str, float], size: int) -> dict[str, int]:
    """How many of `size` records each source gives; what rounding down leaves goes to the largest remainders."""
    shares = {name: weight * size / sum(weights.values()) for name, weight in weights.items()}
    quotas = {name: int(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: quotas[name] - shares[name])
    for name in by_remainder[: size - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def split(count: int, *, validation: float, test: float, dropped: Counter[str]) -> dict[str, range]:
    """Cut `count` rows (already in random order) into train, validation and test; each gets at least one row.

    Raises UserError if there are fewer than three, with the counts of `dropped`, or if none is left for training.
    """
    if count < len(SPLITS):
        counts = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common()) or "none"
        raise UserError(
            f"data: {count} usable records are too few to split in three (dropped: {counts}); give more, correct "
            f"those, or raise data.max_length if they are too long"
        )
    n_validation, n_test = (max(1, round(share * count)) for share in (validation, test))
    held_out = n_validation + n_test
    if held_out >= count:
        raise UserError("data.validation, data.test: together they leave no training record; lower one of them")
    return {"test": range(n_test), "validation": range(n_test, held_out), "train": range(held_out, count)}
