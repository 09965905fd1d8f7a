"""The prepared dataset as later stages read it: tokenised, split, prompts masked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import yaml_file
from finetune.errors import UserError
from finetune.places import FACTS

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from pyarrow import ChunkedArray
    from transformers import PreTrainedTokenizerBase

SPLITS = ("train", "validation", "test")

IGNORE = -100
"""Label of a position without loss (PyTorch's cross-entropy default)."""

_BATCH = 1000
"""Rows that are looked at together."""


def load(folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[DatasetDict, dict]:
    """The splits and facts of the prepared dataset in `folder`.

    Raises UserError if there is none, or if it was made with a tokenizer other than `tokenizer`.
    """
    from datasets import load_from_disk

    if not (folder / FACTS).exists():
        raise UserError(f"{folder}: no prepared dataset there; run `python stages/prepare.py` first")
    facts = yaml_file.read(folder / FACTS)
    if facts["tokenizer"] != tokenizer_id(tokenizer):
        raise UserError(
            f"{folder}: was tokenised for another model; prepare it again with this model's tokenizer: "
            f"`python stages/prepare.py --model_name …`"
        )
    return load_from_disk(str(folder)), facts


def prompt_ids(rows: Iterable[dict[str, Any]]) -> list[list[int]]:
    """The token ids of each row up to where its last response starts; a row ends in that response."""
    return [row["input_ids"][: prompt_length(row["labels"])] for row in rows]


def prompt_length(labels: list[int]) -> int:
    """Tokens of a row before its last response."""
    return len(labels) - labels[::-1].index(IGNORE)


def lengths(split: Dataset) -> list[int]:
    """Tokens of each row, from the column's offsets: no token is read."""
    from pyarrow import compute

    return [length for column in _token_ids(split) for length in compute.list_value_length(column).to_pylist()]


def extremes(split: Dataset) -> list[list[int]]:
    """The token ids of the shortest row, the first if there are several, and of the longest, the last of those."""
    found = lengths(split)
    shortest = found.index(min(found))
    longest = len(found) - 1 - found[::-1].index(max(found))
    return [split[index]["input_ids"] for index in (shortest, longest)]


def highest_token(split: Dataset) -> int:
    """The highest token id of the split."""
    from pyarrow import compute

    return max(compute.max(compute.list_flatten(column)).as_py() for column in _token_ids(split))


def _token_ids(split: Dataset) -> Iterator[ChunkedArray]:
    """The column of token ids, a batch of rows at a time, in the order of the split's rows.

    `split.data` would be the table behind the split, whose rows are others after `filter`, `select` or `shuffle`.
    """
    for batch in split.select_columns("input_ids").with_format("arrow").iter(_BATCH):
        yield batch.column("input_ids")


def tokenizer_id(tokenizer: PreTrainedTokenizerBase) -> str:
    """Short hash of all that turns text into ids: vocabulary, special tokens, chat template."""
    parts = [sorted(tokenizer.get_vocab().items()), tokenizer.all_special_tokens, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
