"""Many requests answered together, here and now."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from finetune.data.turns import Turn
from finetune.serving.models import Served
from finetune.serving.request import Request
from finetune.serving.sampling import Sampling
from finetune.serving.text import TextStream


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


def answers(
    asked: Sequence[tuple[Served, Sequence[Turn]]], sampling: Sampling, max_new_tokens: int
) -> Generator[Piece, None, None]:
    """Answer each conversation by its model, all at a time, in pieces as they come.

    Raises UserError if one of them can't be asked; before any is answered then. An iterator that is closed early drops
    what isn't answered.
    """
    requests = [served.request(turns, sampling, max_new_tokens) for served, turns in asked]
    texts = [served.text() for served, _ in asked]
    engines = list({id(served.engine): served.engine for served, _ in asked}.values())
    numbers = {id(request): number for number, request in enumerate(requests)}
    read = [0] * len(requests)
    started = time.perf_counter()
    for (served, _), request in zip(asked, requests, strict=True):
        served.engine.submit(request)
    try:
        while any(engine.requests for engine in engines):
            for engine in engines:
                for request in engine.step():
                    number = numbers[id(request)]
                    text = new_text(texts[number], request, read[number])
                    read[number] = len(request.made)
                    yield Piece(
                        number,
                        text,
                        len(request.made),
                        len(request.prompt),
                        time.perf_counter() - started,
                        request.reason,
                    )
    finally:
        for engine in engines:
            for request in engine.requests:
                engine.cancel(request)


def new_text(text: TextStream, request: Request, read: int) -> str:
    """The text of the tokens made after the first `read` ones."""
    fresh = text.add(request.made[read:])
    return fresh + text.end() if request.reason else fresh


def whole(pieces: Iterable[Piece]) -> Iterator[tuple[Piece, str]]:
    """Each answer's last piece with the answer in full, in the order in which they end."""
    texts: dict[int, str] = {}
    for piece in pieces:
        texts[piece.number] = texts.get(piece.number, "") + piece.text
        if piece.reason:
            yield piece, texts[piece.number]
