"""Many requests answered together, here and now."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from finetune.data.forms import Turn
from finetune.serving.models import Served
from finetune.serving.request import Request
from finetune.serving.sampling import Sampling


@dataclass(frozen=True)
class Piece:
    """What has come of an answer since the last piece."""

    number: int
    """Of the question, counted from 0."""
    text: str
    tokens: int
    """Of the answer so far."""
    prompt_tokens: int
    seconds: float
    """Since it was asked."""
    reason: str | None
    """Of the last piece: 'stop' or 'length' (`Request.reason`); None before."""


class Telling:
    """An answer told in pieces, as its tokens come."""

    def __init__(self, served: Served, request: Request, number: int = 0) -> None:
        """The clock starts; `number` is the question's."""
        self._request, self._number = request, number
        self._text = served.text()
        self._read = 0
        self._started = time.perf_counter()

    def piece(self) -> Piece:
        """What has come since the last piece."""
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

    Raises UserError if one of them can't be asked; before any is answered then. An iterator that is closed early drops
    what isn't answered.
    """
    requests = [served.request(turns, sampling, max_new_tokens) for served, turns in asked]
    told = {
        request: Telling(served, request, number)
        for number, ((served, _), request) in enumerate(zip(asked, requests, strict=True))
    }
    engines = list(dict.fromkeys(served.engine for served, _ in asked))
    for (served, _), request in zip(asked, requests, strict=True):
        served.engine.submit(request)
    try:
        while any(engine.requests for engine in engines):
            for engine in engines:
                for request in engine.step():
                    yield told[request].piece()
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
