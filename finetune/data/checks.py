"""What would spoil a training or an evaluation, found out before either."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finetune.data.dataset import Encoded

_TOO_MUCH = 0.5
"""A larger share of unknown tokens, or of texts that don't come back, leaves nothing to learn."""


def check_an_end_is_learnt(ends_learnt: Sequence[int], max_length: int) -> None:
    """Raise UserError if in none of the training rows a response ends, so that the model would never learn to stop."""
    if not any(ends_learnt):
        raise UserError(
            f"data.max_length: all {len(ends_learnt)} training responses are cut at {max_length} tokens, "
            f"so the model would never learn to stop; raise it"
        )


def check_answers_fit(longest: int, max_new_tokens: int, positions: int | None) -> None:
    """Raise UserError if the longest test prompt and an answer to it are more than the model's positions."""
    if positions and longest + max_new_tokens > positions:
        raise UserError(
            f"eval.max_new_tokens: {max_new_tokens} tokens after a prompt of {longest} are more than the model's "
            f"{positions} positions; lower it, or data.max_length"
        )


class TextLosses:
    """How much a tokenizer loses of the rows that it is shown: unknown tokens, and responses that don't come back.

    Case, accents, width and white space, which tokenizers fold, don't count.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._unknown_token = tokenizer.unk_token_id
        # Many tokenizers name their end or padding as the unknown token, since no byte is unknown to them.
        if self._unknown_token in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
            self._unknown_token = None
        self._rows = self._tokens = self._unknown = self._lost = 0

    def add(self, encoded: Encoded) -> None:
        """Look at a row."""
        ids, response = encoded.row["input_ids"], encoded.response
        self._rows += 1
        self._tokens += len(ids)
        self._unknown += 0 if self._unknown_token is None else ids.count(self._unknown_token)
        # What comes back as it was is told without tokenising it by itself.
        if _text(response.ids, self._tokenizer) != response.text:
            self._lost += _folded(response.said) != _folded(_there_and_back(response.said, self._tokenizer))

    def found(self) -> dict[str, int]:
        """The counts that aren't 0. Raises UserError if the tokenizer loses most."""
        if max(self._unknown / self._tokens, self._lost / self._rows) > _TOO_MUCH:
            raise UserError(
                f"model.source: its tokenizer can't write these records: {self._unknown} of {self._tokens} tokens are "
                f"unknown to it, and {self._lost} of {self._rows} responses don't come back from it; take a model of the "
                f"records' language"
            )
        counts = {"unknown_tokens": self._unknown, "responses_not_restored": self._lost}
        return {name: count for name, count in counts.items() if count}


def _there_and_back(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    return _text(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], tokenizer)


def _text(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFKD", text).casefold()
    return "".join(character for character in folded if not (character.isspace() or unicodedata.combining(character)))
