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
    from datasets import DatasetDict
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
    return [row["input_ids"][: _last_masked(row["labels"]) + 1] for row in rows]


def _last_masked(labels: list[int]) -> int:
    return max(index for index, label in enumerate(labels) if label == IGNORE)


def tokenizer_id(tokenizer: PreTrainedTokenizerBase) -> str:
    """Short hash of what turns text into ids: vocabulary, special tokens, chat template."""
    parts = [sorted(tokenizer.get_vocab().items()), tokenizer.all_special_tokens, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
