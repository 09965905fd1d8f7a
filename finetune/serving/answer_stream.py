"""Answers in pieces of text, as their tokens come; many conversations may be answered together."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune.data.forms import Turn
from finetune.generation.request import Request, Sampling
from finetune.serving.models import Served

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns tokens into text as soon as later ones can't change it.

    Together the pieces are the text of the whole answer, stripped: a character whose bytes lie in several
    tokens waits for the last of them, and white space for what follows it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> None:
        self._tokenizer, self._ends = tokenizer, ends
        self._ids: list[int] = []
        self._before = 0  # tokens whose text only decides the space before the next ones
        self._told = 0  # tokens whose text has been returned
        self._started, self._space = False, ""

    def add(self, tokens: Iterable[int]) -> str:
        """The text that `tokens` complete."""
        self._ids += [token for token in tokens if token not in self._ends]
        known, text = self._decode(self._ids[self._before : self._told]), self._decode(self._ids[self._before :])
        if len(text) <= len(known) or text.endswith(_INCOMPLETE):
            return ""
        self._before, self._told = self._told, len(self._ids)
        return self._stripped(text[len(known) :])

    def end(self) -> str:
        """The rest of the text, if no token follows."""
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


@dataclass(frozen=True)
class Piece:
    """The part of an answer that has come since the last piece."""

    number: int
    """The question's, counted from 0."""
    text: str
    tokens: int
    """Tokens of the answer so far."""
    prompt_tokens: int
    seconds: float
    """Time since the question was asked."""
    reason: str | None
    """Why the answer has ended, in its last piece (`Request.reason`); None before."""


class AnswerStream:
    """An answer in pieces, as its tokens come."""

    def __init__(self, served: Served, request: Request, number: int = 0) -> None:
        """Start the clock for question number `number`."""
        self._request, self._number = request, number
        self._text = TextStream(served.tokenizer, served.ends)
        self._read = 0
        self._started = time.perf_counter()

    def next_piece(self) -> Piece:
        """The text and tokens that have come since the last piece."""
        request = self._request
        text = self._text.add(request.made[self._read :])
        self._read = len(request.made)
        return Piece(
            number=self._number,
            text=text + self._text.end() if request.reason else text,
            tokens=self._read,
            prompt_tokens=len(request.prompt),
            seconds=time.perf_counter() - self._started,
            reason=request.reason,
        )


def answers(
    asked: Sequence[tuple[Served, Sequence[Turn]]], sampling: Sampling, max_new_tokens: int
) -> Generator[Piece, None, None]:
    """Answer each conversation by its model, all at a time, in pieces as they come.

    Raises UserError if one of them can't be asked, before any is answered. Closed early, the iterator drops what isn't
    answered.
    """
    requests = [served.request(turns, sampling, max_new_tokens) for served, turns in asked]
    streams = {
        request: AnswerStream(served, request, number)
        for number, ((served, _), request) in enumerate(zip(asked, requests, strict=True))
    }
    engines = list(dict.fromkeys(served.engine for served, _ in asked))
    for (served, _), request in zip(asked, requests, strict=True):
        served.engine.submit(request)
    try:
        while any(engine.requests for engine in engines):
            for engine in engines:
                for request in engine.step():
                    yield streams[request].next_piece()
    finally:
        for engine in engines:
            for request in engine.requests:
                engine.cancel(request)


def whole(pieces: Iterable[Piece]) -> Iterator[tuple[Piece, str]]:
    """Each answer's last piece with the answer in full, in the order in which they end."""
    texts: dict[int, str] = {}
    for piece in pieces:
        texts[piece.number] = texts.get(piece.number, "") + piece.text
        if piece.reason:
            yield piece, texts[piece.number]
