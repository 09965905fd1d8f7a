"""The prepared dataset as later stages read it: tokenised, split, prompts masked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import UserError
from finetune.files import read_yaml
from finetune.places import FACTS

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase

SPLITS = ("train", "validation", "test")

IGNORE = -100
"""Label of a position without loss (PyTorch's cross-entropy default)."""


def load(folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[DatasetDict, dict]:
    """The splits and facts that `save` wrote.

    Raises UserError if there is none, or if it was made with a tokenizer other than `tokenizer`.
    """
    from datasets import load_from_disk

    if not (folder / FACTS).exists():
        raise UserError(f"{folder}: no prepared dataset there; run `python stages/prepare.py` first")
    facts = read_yaml(folder / FACTS)
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
    """Tokens of each row, from the column's offsets: no row is read."""
    from pyarrow import compute

    return compute.list_value_length(split.data.column("input_ids")).to_pylist()


def extremes(split: Dataset) -> list[list[int]]:
    """The token ids of the shortest row, the first if there are several, and of the longest, the last of those."""
    found = lengths(split)
    shortest = found.index(min(found))
    longest = len(found) - 1 - found[::-1].index(max(found))
    return [split[index]["input_ids"] for index in (shortest, longest)]


def highest_token(split: Dataset) -> int:
    """The highest token id of the split."""
    from pyarrow import compute

    return max(compute.max(chunk.flatten()).as_py() for chunk in split.data.column("input_ids").chunks if len(chunk))


def tokenizer_id(tokenizer: PreTrainedTokenizerBase) -> str:
    """Short hash of what turns text into ids: vocabulary, special tokens, chat template."""
    parts = [sorted(tokenizer.get_vocab().items()), tokenizer.all_special_tokens, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
