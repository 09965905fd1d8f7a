"""One model's answer as it comes."""

import logging
import time
from collections.abc import Sequence
from contextlib import aclosing

from nicegui import ui

from finetune.data.forms import Turn
from finetune.errors import UserError
from finetune.generation.request import Sampling
from finetune.serving.answer_stream import Piece
from finetune.serving.worker import Worker
from finetune.web.differences import marked, plain
from finetune.web.heading import heading

_REDRAW = 0.1
"""Seconds between two looks of an answer: the browser gets its whole text each time."""


class Column:
    """A model's name, its answer, and what the answer took."""

    def __init__(self, worker: Worker, name: str) -> None:
        self.name = name
        self.text = ""
        self.done = False
        self._worker = worker
        with ui.element("section").classes("ft-column") as section:
            section.props["aria-label"] = f"Answer of {name}"
            heading(name, worker.method(name))
            # A screen reader speaks the answer when it is whole, not each piece of it.
            self._answer = ui.html(tag="div").classes("ft-text").props("aria-live=polite aria-busy=true")
            self._error = ui.label().classes("ft-error").props("role=alert")
            self._error.visible = False
            self._figures = ui.label("waiting for the first token").classes("ft-figures")

    async def fill(self, turns: Sequence[Turn], sampling: Sampling, max_new_tokens: int) -> None:
        """Stream the answer. What goes wrong becomes a sentence in the column; cancelling keeps what has come."""
        first = piece = None
        drawn = 0.0
        end = "stopped"
        try:
            async with aclosing(self._worker.stream(self.name, turns, sampling, max_new_tokens)) as pieces:
                async for piece in pieces:
                    first = first or piece
                    self.text += piece.text
                    if time.monotonic() - drawn > _REDRAW:
                        self._draw(self._spent(first, piece))
                        drawn = time.monotonic()
            end = "" if self.text.strip() else "empty answer"
            if piece and piece.reason == "length":
                end = "cut: as many tokens as were allowed"
        except UserError as error:
            end = self._say(str(error))
        except Exception:
            logging.getLogger(__name__).exception("%s: the answer broke off", self.name)
            end = self._say("The answer broke off; the server's log says why.")
        finally:
            self.done = True
            spent = [self._spent(first, piece)] if first and piece else []
            self._draw(" · ".join([*spent, end] if end else spent))
            self._answer.props("aria-busy=false")

    def compare(self, first: str | None) -> None:
        """Mark the words that differ from the `first` answer; None marks nothing."""
        self._answer.content = plain(self.text.strip()) if first is None else marked(first.strip(), self.text.strip())

    def _draw(self, figures: str) -> None:
        self._answer.content = plain(self.text.strip())
        self._figures.text = figures

    def _say(self, sentence: str) -> str:
        self._error.text = sentence
        self._error.visible = True
        return "broke off" if self.text else "no answer"

    def _spent(self, first: Piece, last: Piece) -> str:
        """Speed is of the tokens after the first, whose wait is given beside it."""
        parts = ["1 token" if last.tokens == 1 else f"{last.tokens} tokens"]
        if last.seconds > first.seconds:
            parts.append(f"{(last.tokens - first.tokens) / (last.seconds - first.seconds):.1f} tokens/s")
        parts.append(f"first after {first.seconds:.2f} s")
        return " · ".join([*parts, f"{self._worker.memory_gb(self.name):.3f} GB held"])
