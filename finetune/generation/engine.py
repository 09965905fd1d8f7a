"""Continuous batching: requests share the forwards of a model; one that is answered leaves at once, and a waiting one
takes its slot. Each has its own adapter and sampling."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear

from finetune.generation import fallback
from finetune.generation.joint_layers import JointLayers
from finetune.generation.kv_cache import KVCache
from finetune.generation.request import Request
from finetune.kernels.attention import ROUND_ROWS_TO, mask_of
from finetune.kernels.loss import head_inputs
from finetune.kernels.packing import TOKENS_PER_FORWARD, grouped

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Engine:
    """Answers requests over one model, which `prepared_model.prepared` has made ready."""

    def __init__(
        self, model: PreTrainedModel | PeftModel, layers: JointLayers | None, slots: int, *, offline: bool = False
    ) -> None:
        """At most `slots` requests are answered at a time. With no joint `layers` the model is left to transformers.

        Requests enter as soon as a slot is free, few tokens at a time, so that no other answer waits long. `offline`,
        when nobody watches, they wait until an eighth of the slots is free, and then fill all: a forward goes through
        the same weights whether it is for one prompt or for ten.
        """
        self._model, self._layers, self._slots, self._offline = model, layers, slots, offline
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
        """Give a token to each of some requests, and return these; with no joint layers they get their whole answers."""
        if self._layers is None:
            return self._answered_whole()
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
        """The waiting requests that take slots now."""
        free = self._slots - len(self._running)
        enough = max(1, self._slots // 8) if self._offline else 1
        if self._running and free < min(enough, len(self._waiting)):
            return []
        chosen: list[Request] = []
        tokens = 0
        while self._waiting and len(chosen) < free:
            tokens += len(self._waiting[0].prompt)
            if chosen and tokens > TOKENS_PER_FORWARD and not self._offline:
                break
            chosen.append(self._waiting.popleft())
        return chosen

    def _answered_whole(self) -> list[Request]:
        """Requests that transformers has answered: one, since each may have its own sampling, or `offline` a batch."""
        chosen = [self._waiting.popleft() for _ in range(min(self._slots if self._offline else 1, len(self._waiting)))]
        if chosen:
            fallback.answer(self._model, chosen)
        return chosen


class Decoder:
    """Forwards of a prepared model over the slots of its cache."""

    def __init__(self, model: PreTrainedModel | PeftModel, slots: int, layers: JointLayers | None = None) -> None:
        """With joint `layers`, each prompt can name an adapter of those that they have loaded."""
        self._model, self._layers = base_model(model), layers
        self._cache = KVCache(slots)
        self._adapters: list[str | None] = []  # by slot
        self._head: Any = self._model.get_output_embeddings()

    @torch.inference_mode()
    def enter(self, prompts: list[list[int]], adapters: Sequence[str | None]) -> torch.Tensor:
        """Let prompts take the next slots, each with its adapter (None: the base alone).

        Returns what the head is given after each, (prompts, width).
        """
        found, start = [], 0
        self._adapters += adapters
        waiting = iter(prompts)
        for lengths in grouped(map(len, prompts), int, TOKENS_PER_FORWARD):
            self._cache.enter(lengths)
            spare = -sum(lengths) % ROUND_ROWS_TO
            self._assign(adapters[start : start + len(lengths)], lengths, spare)
            ids = self._tensor([[*chain.from_iterable(islice(waiting, len(lengths))), *[0] * spare]])
            positions = self._tensor([[*chain.from_iterable(map(range, lengths)), *range(spare)]])
            mask = mask_of(torch.tensor([*lengths, spare] if spare else lengths))
            hidden = self._forward(input_ids=ids, position_ids=positions, attention_mask=mask)
            found.append(hidden[0, torch.tensor(lengths).cumsum(0) - 1])
            start += len(lengths)
        return torch.cat(found)

    @torch.inference_mode()
    def step(self, last: list[int]) -> torch.Tensor:
        """What the head is given after each of the tokens `last`, (slots in use, width), which aren't in their slots yet."""
        positions, mask = self._cache.add(self._model.device, self._model.dtype)
        spare = len(positions) - len(last)
        self._assign(self._adapters, [1] * len(last), spare)
        ids = self._tensor([*last, *[0] * spare])[:, None]
        return self._forward(input_ids=ids, position_ids=positions, attention_mask=mask)[: len(last), 0]

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits, (rows, vocabulary), of what the head is given, (rows, width)."""
        return linear(hidden, self._head.weight, self._head.bias)

    @torch.inference_mode()
    def drop(self, slot: int, running: list[Any]) -> None:
        """Free `slot`: what is in the last one in use moves there, as it does in `running`, a list by slot."""
        # Slots in use stay the first ones, so that a forward takes them as they lie.
        self._cache.drop(slot)
        for by_slot in (self._adapters, running):
            by_slot[slot] = by_slot[-1]
            by_slot.pop()

    def _assign(self, adapters: Sequence[str | None], lengths: Sequence[int], spare: int) -> None:
        """The next forward holds `lengths` tokens of each of these adapters, and `spare` ones that nobody wants."""
        if self._layers is None:
            return
        if len(set(adapters)) == 1:
            self._layers.assign(adapters[:1])
            return
        rows = chain.from_iterable([name] * length for name, length in zip(adapters, lengths, strict=True))
        self._layers.assign([*rows, *[None] * spare])

    def _tensor(self, numbers: list[Any]) -> torch.Tensor:
        return torch.tensor(numbers, device=self._model.device)

    def _forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return head_inputs(self._model, **inputs, past_key_values=self._cache, use_cache=True)


def base_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model with its adapters inside, without peft's own wrapping of each call."""
    inside: Any = getattr(model, "get_base_model", lambda: model)
    return inside()
