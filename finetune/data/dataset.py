"""Records to a tokenised, split Arrow dataset."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from finetune.data.pieces import Refused
from finetune.data.prepared import IGNORE, SPLITS
from finetune.data.prompts import Template
from finetune.data.records import Records
from finetune.data.turns import Record
from finetune.errors import UserError
from finetune.files import whole_folder, write_yaml
from finetune.places import FACTS


def encode(record: Record, template: Template, max_length: int) -> dict | None:
    """One row: `input_ids` and `labels` (-100 outside the responses), both of at most `max_length` tokens.

    A response that doesn't fit is cut, and then has no end token; what would follow it is left out.
    `reference` is the last response that is left, `prompt` the text before it. None if the first
    prompt leaves no room. Raises Refused if the template can't render the record.
    """
    stretches = template.stretches(record.turns)
    ids: list[int] = []
    labels: list[int] = []
    kept = 0
    for prompt, response in zip(stretches[::2], stretches[1::2], strict=True):
        room = max_length - len(ids) - len(prompt.ids)
        if room < 1:
            break
        ids += prompt.ids + response.ids[:room]
        labels += [IGNORE] * len(prompt.ids) + response.ids[:room]
        kept += 2
    if not kept:
        return None
    return {
        "input_ids": ids,
        "labels": labels,
        "truncated": len(ids) < sum(len(stretch.ids) for stretch in stretches),
        "prompt": "".join(stretch.text for stretch in stretches[: kept - 1]),
        "reference": stretches[kept - 1].said,
        "record": record.position,
    }


def sample(
    records: list[Record],
    template: Template,
    *,
    size: int,
    seed: int,
    max_length: int,
    weights: dict[str, float],
    on_bad_record: str,
) -> tuple[list[dict], Counter[str], Counter[str]]:
    """Encode `size` records (or all, if there are fewer) in an order drawn by `seed`.

    `weights` gives each source its share of `size`; without any all records are alike. Returns the rows,
    why others were dropped ('prompt_too_long', 'template_refused'), and what the rows are made of
    (form or source to count). Raises UserError for a record that the template refuses if `on_bad_record`
    is 'error', or if it refuses all.
    """
    order = list(range(len(records)))
    random.Random(seed).shuffle(order)
    left = Counter(_quotas(weights, size))
    rows: list[dict] = []
    dropped: Counter[str] = Counter()
    # A source that gives nothing is named as well.
    made_of = Counter(
        {f"source_{source}": 0 for source in {*weights, *(record.source for record in records)} if source}
    )
    refusal = ""
    for record in (records[index] for index in order):
        if weights and not left[record.source]:
            continue
        try:
            row = encode(record, template, max_length)
        except Refused as refused:
            refusal = f"{record.position}: data.template can't take the record: {refused}"
            if on_bad_record == "error":
                raise UserError(refusal) from None
            dropped["template_refused"] += 1
            continue
        if row is None:
            dropped["prompt_too_long"] += 1
            continue
        rows.append(row)
        left[record.source] -= 1
        made_of.update([f"form_{record.form}", *([f"source_{record.source}"] if record.source else [])])
        if len(rows) == size:
            break
    if not rows and refusal:
        raise UserError(refusal)
    return rows, dropped, made_of


def _quotas(weights: dict[str, float], size: int) -> dict[str, int]:
    """How many of `size` each source may give; the largest remainders get what rounding down leaves."""
    shares = {name: weight * size / sum(weights.values()) for name, weight in weights.items()}
    quotas = {name: int(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: quotas[name] - shares[name])
    for name in by_remainder[: size - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def split(rows: list[dict], *, validation: float, test: float, dropped: Counter[str]) -> dict[str, list[dict]]:
    """Cut rows (already in random order) into train, validation and test; each gets at least one row.

    Raises UserError if there are fewer than three; it names what `dropped` counts.
    """
    if len(rows) < len(SPLITS):
        counts = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common()) or "none"
        raise UserError(
            f"data: {len(rows)} usable records are too few to split in three (dropped: {counts}); give more, mend "
            f"those, or raise data.max_length if they are too long"
        )
    n_validation, n_test = (max(1, round(share * len(rows))) for share in (validation, test))
    held_out = n_validation + n_test
    if held_out >= len(rows):
        raise UserError("data.validation, data.test: together they leave no training record; lower one of them")
    return {"test": rows[:n_test], "validation": rows[n_test:held_out], "train": rows[held_out:]}


def save(splits: dict[str, list[dict]], facts: dict, folder: Path) -> None:
    """Write the splits as an Arrow `DatasetDict` with `facts` beside it, the same bytes for the same rows."""
    from datasets import Dataset, DatasetDict, Features, List, Value

    features = Features(
        {
            "input_ids": List(Value("int32")),
            "labels": List(Value("int32")),
            "truncated": Value("bool"),
            "prompt": Value("string"),
            "reference": Value("string"),
            "record": Value("string"),
        }
    )
    with whole_folder(folder) as draft:
        DatasetDict({name: Dataset.from_list(splits[name], features=features) for name in SPLITS}).save_to_disk(draft)
        for state in draft.rglob("state.json"):
            _steady_fingerprint(state)
        write_yaml(draft / FACTS, facts)


def _steady_fingerprint(state: Path) -> None:
    """datasets puts a fingerprint of the process in state.json; take one of the data instead."""
    value = json.loads(state.read_text())
    value["_fingerprint"] = hashlib.sha256(
        b"".join(p.read_bytes() for p in sorted(state.parent.glob("*.arrow")))
    ).hexdigest()[:16]
    state.write_text(json.dumps(value, indent=2, sort_keys=True))


def statistics(
    splits: dict[str, list[dict]], records: Records, dropped: Counter[str], made_of: Counter[str]
) -> dict[str, Any]:
    """Counts and length percentiles (tokens of prompt and response) for metrics/data.json.

    `dropped` and `made_of` are what `sample` counted.
    """
    import numpy

    rows = [row for name in SPLITS for row in splits[name]]
    lengths = numpy.array([len(row["input_ids"]) for row in rows])
    facts: dict[str, Any] = {"records_read": len(records.good) + records.dropped.total(), "records_kept": len(rows)}
    facts |= {f"{name}_records": len(splits[name]) for name in SPLITS}
    facts |= dict(sorted(made_of.items()))
    facts |= {f"dropped_{reason}": count for reason, count in sorted((records.dropped + dropped).items())}
    facts |= {"unanswered_turns": records.unanswered} if records.unanswered else {}
    facts |= {f"ignored_column_{name}": count for name, count in sorted(records.ignored.items())}
    facts |= {f"length_p{q}": round(float(numpy.percentile(lengths, q)), 1) for q in (50, 90, 99)}
    facts |= {
        "length_max": int(lengths.max()),
        "tokens": int(lengths.sum()),
        "response_tokens": sum(label != IGNORE for row in rows for label in row["labels"]),
        "truncated_share": round(sum(row["truncated"] for row in rows) / len(rows), 4),
    }
    return facts
