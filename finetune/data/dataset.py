"""Records to a tokenised, split Arrow dataset."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.data import prompts
from finetune.data.prepared import IGNORE, SPLITS
from finetune.data.records import Record
from finetune.errors import UserError
from finetune.files import whole_folder, write_yaml
from finetune.places import FACTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(record: Record, tokenizer: PreTrainedTokenizerBase, template: str, max_length: int) -> dict | None:
    """One row: `input_ids` and `labels` (prompt masked with -100), both of at most `max_length` tokens.

    A response that doesn't fit is cut, and then has no end token. None if the prompt leaves no room.
    """
    prompt = prompts.render(template, tokenizer, record.instruction, record.input)
    prompt_ids = prompts.prompt_tokens(template, tokenizer, prompt)
    response_ids = prompts.response_tokens(tokenizer, record.output)
    room = max_length - len(prompt_ids)
    if room < 1:
        return None
    return {
        "input_ids": prompt_ids + response_ids[:room],
        "labels": [IGNORE] * len(prompt_ids) + response_ids[:room],
        "truncated": len(response_ids) > room,
        "prompt": prompt,
        "reference": record.output,
        "record": record.position,
    }


def sample(
    records: list[Record],
    tokenizer: PreTrainedTokenizerBase,
    *,
    size: int,
    seed: int,
    template: str,
    max_length: int,
) -> tuple[list[dict], Counter[str]]:
    """Encode `size` records (or all, if there are fewer) in an order drawn by `seed`; count the prompts too long."""
    order = list(range(len(records)))
    random.Random(seed).shuffle(order)
    rows: list[dict] = []
    dropped: Counter[str] = Counter()
    for index in order:
        row = encode(records[index], tokenizer, template, max_length)
        if row:
            rows.append(row)
        else:
            dropped["prompt_too_long"] += 1
        if len(rows) == size:
            break
    return rows, dropped


def split(rows: list[dict], *, validation: float, test: float) -> dict[str, list[dict]]:
    """Cut rows (already in random order) into train, validation and test; each gets at least one row.

    Raises UserError if there are fewer than three.
    """
    if len(rows) < len(SPLITS):
        raise UserError(
            f"data: {len(rows)} usable records are too few to split in three; raise data.size or data.max_length"
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


def statistics(splits: dict[str, list[dict]], read: int, dropped: Counter[str]) -> dict[str, float]:
    """Counts and length percentiles (tokens of prompt and response) for metrics/data.json."""
    import numpy

    rows = [row for name in SPLITS for row in splits[name]]
    lengths = numpy.array([len(row["input_ids"]) for row in rows])
    facts: dict[str, float] = {"records_read": read, "records_kept": len(rows)}
    facts |= {f"{name}_records": len(splits[name]) for name in SPLITS}
    facts |= {f"dropped_{reason}": count for reason, count in sorted(dropped.items())}
    facts |= {f"length_p{q}": round(float(numpy.percentile(lengths, q)), 1) for q in (50, 90, 99)}
    facts |= {
        "length_max": int(lengths.max()),
        "tokens": int(lengths.sum()),
        "response_tokens": sum(label != IGNORE for row in rows for label in row["labels"]),
        "truncated_share": round(sum(row["truncated"] for row in rows) / len(rows), 4),
    }
    return facts
