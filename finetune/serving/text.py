"""The text of an answer whose tokens come one by one."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns tokens into text as soon as it is certain.

    Together the pieces are what decoding the whole answer and stripping it gives: a character whose bytes lie in several
    tokens waits for the last of them, and white space for what follows it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> None:
        self._tokenizer, self._ends = tokenizer, ends
        self._ids: list[int] = []
        self._before = 0  # tokens whose text only tells how the next ones are spaced
        self._told = 0  # tokens whose text has been handed out
        self._started, self._space = False, ""

    def add(self, tokens: Iterable[int]) -> str:
        """The text that `tokens` make certain."""
        self._ids += [token for token in tokens if token not in self._ends]
        known, text = self._decode(self._ids[self._before : self._told]), self._decode(self._ids[self._before :])
        if len(text) <= len(known) or text.endswith(_INCOMPLETE):
            return ""
        self._before, self._told = self._told, len(self._ids)
        return self._stripped(text[len(known) :])

    def end(self) -> str:
        """What is left when no token follows."""
        known, text = self._decode(self._ids[self._before : self._told]), self._decode(self._ids[self._before :])
        return self._stripped(text[len(known) :])

    def _stripped(self, text: str) -> str:
        """`text`, without white space at the answer's start, and with what was held back before."""
        text = self._space + text
        if not self._started:
            text = text.lstrip()
        told = text.rstrip()
        self._space = text[len(told) :]
        self._started = self._started or bool(told)
        return told

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)  # type: ignore[return-value]  # of one list, text
