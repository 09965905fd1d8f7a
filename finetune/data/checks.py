"""What would spoil a training or an evaluation, found out before either."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from finetune.data.prepared import prompt_ids
from finetune.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOO_MUCH = 0.5
"""A larger share of unknown tokens, or of texts that don't come back, leaves nothing to learn."""


def check_an_end_is_learnt(train: list[dict], end_token: int, max_length: int) -> None:
    """Raise UserError if every training response is cut, so that the model would never learn to stop."""
    if not any(end_token in row["labels"] for row in train):
        raise UserError(
            f"data.max_length: all {len(train)} training responses are cut at {max_length} tokens, "
            f"so the model would never learn to stop; raise it"
        )


def check_answers_fit(test: list[dict], max_new_tokens: int, positions: int | None) -> None:
    """Raise UserError if a test prompt and an answer to it are more than the model's positions."""
    longest = max(map(len, prompt_ids(test)))
    if positions and longest + max_new_tokens > positions:
        raise UserError(
            f"eval.max_new_tokens: {max_new_tokens} tokens after a prompt of {longest} are more than the model's "
            f"{positions} positions; lower it, or data.max_length"
        )


def losses_of_text(rows: list[dict], tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """How much the tokenizer loses: its unknown tokens, and the responses that don't come back from it, each if any.

    Case, accents, width and white space, which tokenizers fold, don't count. Raises UserError if it loses most.
    """
    unknown, tokens = _unknown(rows, tokenizer), sum(len(row["input_ids"]) for row in rows)
    lost = sum(_folded(row["reference"]) != _folded(_there_and_back(row["reference"], tokenizer)) for row in rows)
    if max(unknown / tokens, lost / len(rows)) > _TOO_MUCH:
        raise UserError(
            f"model.source: its tokenizer can't write these records: {unknown} of {tokens} tokens are unknown to it, "
            f"and {lost} of {len(rows)} responses don't come back from it; take a model of the records' language"
        )
    return {name: count for name, count in (("unknown_tokens", unknown), ("responses_not_restored", lost)) if count}


def _unknown(rows: list[dict], tokenizer: PreTrainedTokenizerBase) -> int:
    # Many tokenizers name their end or padding as the unknown token, since no byte is unknown to them.
    if tokenizer.unk_token_id in (None, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        return 0
    return sum(row["input_ids"].count(tokenizer.unk_token_id) for row in rows)


def _there_and_back(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFKD", text).casefold()
    return "".join(character for character in folded if not (character.isspace() or unicodedata.combining(character)))
