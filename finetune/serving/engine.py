"""Requests answered over one model: those that are there share its passes, each with its own adapter and sampling."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from finetune.evaluation.decoding import Decoder
from finetune.evaluation.products import Joined
from finetune.kernels.packing import TOKENS_PER_PASS
from finetune.serving.alone import answer_alone
from finetune.serving.request import Request

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Engine:
    """Continuous batching: a request that is answered leaves at once, and a waiting one takes its slot."""

    def __init__(self, model: PreTrainedModel | PeftModel, layers: Joined | None, slots: int) -> None:
        """With no joined `layers` the model is left to transformers, one request at a time."""
        self._model, self._layers, self._slots = model, layers, slots
        self.reset()

    def reset(self) -> None:
        """Forget all requests."""
        self._decoder = Decoder(self._model, self._slots, self._layers)
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []  # by slot

    @property
    def requests(self) -> list[Request]:
        """All that have not ended."""
        return [*self._running, *self._waiting]

    def submit(self, request: Request) -> None:
        """Let `request` wait for its turn."""
        self._waiting.append(request)

    def cancel(self, request: Request) -> None:
        """Drop `request`, wherever it is."""
        if request in self._waiting:
            self._waiting.remove(request)
        elif request in self._running:
            self._decoder.drop(self._running.index(request), self._running)

    def step(self) -> list[Request]:
        """Make a pass. Returns the requests that it gave a token, or where `layers` are none, all of one's tokens."""
        if self._layers is None:
            return [answer_alone(self._model, self._waiting.popleft())] if self._waiting else []
        entering = self._entering()
        if entering:
            hidden = self._decoder.enter([one.prompt for one in entering], [one.adapter for one in entering])
            self._running += entering
        elif self._running:
            hidden = self._decoder.step([one.made[-1] for one in self._running])
        else:
            return []
        fresh = entering or list(self._running)
        logits = self._decoder.logits(hidden)
        for request, likeliest, row in zip(fresh, logits.max(-1).indices.tolist(), logits, strict=True):
            request.choose(likeliest, row)
        for slot in reversed(range(len(self._running))):
            if self._running[slot].reason:
                self._decoder.drop(slot, self._running)
        return fresh

    def _entering(self) -> list[Request]:
        """Those of the waiting that take slots now: as many tokens as a pass holds, so that nobody's answer stands long."""
        chosen: list[Request] = []
        tokens = 0
        while self._waiting and len(self._running) + len(chosen) < self._slots:
            tokens += len(self._waiting[0].prompt)
            if chosen and tokens > TOKENS_PER_PASS:
                break
            chosen.append(self._waiting.popleft())
        return chosen
