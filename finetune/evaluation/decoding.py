"""Greedy decoding with continuous batching: a prompt that is answered leaves at once, and a waiting one takes its slot.

Which models this works for isn't told by their names: `prepared` compares it with the model's own forward pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.functional import linear

from finetune.device import is_out_of_memory
from finetune.evaluation.products import Joined, joined
from finetune.evaluation.routes import OWN
from finetune.evaluation.slots import Slots, attending_to_slots
from finetune.kernels.attention import ROUND_ROWS_TO, mask_of
from finetune.kernels.loss import head_inputs
from finetune.kernels.packing import TOKENS_PER_PASS, grouped
from finetune.models.probe import TOLERANCE

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def tokens(
    model: PreTrainedModel | PeftModel,
    prompts: list[list[int]],
    *,
    slots: int,
    max_new_tokens: int,
    ends: Collection[int],
) -> Iterator[tuple[int, int]]:
    """Yield (number of the prompt, token) for every token of the greedy answers, each prompt's in their order.

    An answer closes with one of `ends`, or after `max_new_tokens`. At most `slots` prompts are answered at a time.
    """
    waiting = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # the longest is at the end
    slots = min(slots, len(prompts))
    decoder = Decoder(model, slots)
    running: list[int] = []  # by slot
    made: list[list[int]] = [[] for _ in prompts]
    # A few at a time, since a pass goes through the same weights whether it is for one prompt or for ten.
    few = max(1, slots // 8)
    while waiting or running:
        free = slots - len(running)
        if waiting and (free >= min(few, len(waiting)) or not running):
            fresh = [waiting.pop() for _ in range(min(free, len(waiting)))]
            hidden = decoder.enter([prompts[index] for index in fresh])
            running += fresh
        else:
            hidden, fresh = decoder.step([made[index][-1] for index in running]), running
        for index, token in zip(fresh, decoder.likeliest(hidden), strict=True):
            made[index].append(token)
            yield index, token
        for slot in reversed(range(len(running))):
            answer = made[running[slot]]
            if len(answer) == max_new_tokens or answer[-1] in ends:
                decoder.drop(slot, running)


@contextmanager
def prepared(
    model: PreTrainedModel | PeftModel, prompts: list[list[int]], max_new_tokens: int
) -> Iterator[Joined | None]:
    """Make `model` ready for `Decoder` within the block; None, and nothing changed, if its own answers would be others.

    It is tried on the longest and the shortest of `prompts`, as long as the answers can make them.
    """
    base = base_model(model)
    short, long = min(prompts, key=len), max(prompts, key=len)
    tried = [_lengthened(long, len(long) + max_new_tokens), _lengthened(short, len(short) + 1)]
    with ExitStack() as undo:
        try:
            hidden = [head_inputs(base, input_ids=_ids(base, tried[0]))[0, -2:]]
            logits: list[torch.Tensor] = []
            undo.enter_context(attending_to_slots(base))
            layers = undo.enter_context(joined(base, partial(_pass_seen, base, tried[1], hidden, logits)))
            head: Any = base.get_output_embeddings()
            near = _is_near(linear(hidden[1], head.weight, head.bias), logits[0])
            ready = layers if near and _is_near(_in_slots(base, tried), torch.cat(hidden)) else None
        except Exception as error:  # what a model can't be asked it answers with all kinds of errors
            if is_out_of_memory(error):
                raise
            ready = None
        if ready is None:
            undo.close()
        yield ready


def _pass_seen(model: PreTrainedModel, ids: list[int], hidden: list[torch.Tensor], logits: list[torch.Tensor]) -> None:
    """A pass of `ids`; what its head is given at the last two tokens, and makes of it, is added to both lists."""
    handle = cast(nn.Module, model.get_output_embeddings()).register_forward_pre_hook(
        lambda _, given: hidden.append(given[0][0, -2:])
    )
    try:
        logits.append(model(input_ids=_ids(model, ids), use_cache=False).logits[0, -2:])
    finally:
        handle.remove()


def _lengthened(ids: list[int], size: int) -> list[int]:
    return (ids * -(-size // len(ids)))[:size]


def _ids(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return torch.tensor([ids], device=model.device)


def _in_slots(model: PreTrainedModel, rows: list[list[int]]) -> torch.Tensor:
    """What the head is given at the last two tokens of each of `rows`, of which the last comes in a pass of its own."""
    decoder = Decoder(model, len(rows))
    before = decoder.enter([ids[:-1] for ids in rows])
    last = decoder.step([ids[-1] for ids in rows])
    return torch.stack([before, last], 1).flatten(0, 1)


def _is_near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether each row's difference is as small beside the row as rounding makes it."""
    difference = (found.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)
    return bool((difference < TOLERANCE[expected.dtype]).all())


class Decoder:
    """Passes of a model over slots, within `prepared`."""

    def __init__(self, model: PreTrainedModel | PeftModel, slots: int, layers: Joined | None = None) -> None:
        """With its joined `layers`, each prompt can name an adapter of those they hold."""
        self._model, self._layers = base_model(model), layers
        self._slots = Slots(slots)
        self._adapters: list[str | None] = []  # by slot
        self._head: Any = self._model.get_output_embeddings()

    @torch.inference_mode()
    def enter(self, prompts: list[list[int]], adapters: Sequence[str | None] | None = None) -> torch.Tensor:
        """Prompts take the next slots, each with its adapter (None: the base alone).

        Returns what the head is given after each, (prompts, width).
        """
        found, start = [], 0
        names = [OWN] * len(prompts) if adapters is None else list(adapters)
        self._adapters += names
        waiting = iter(prompts)
        for lengths in grouped(map(len, prompts), int, TOKENS_PER_PASS):
            self._slots.enter(lengths)
            spare = -sum(lengths) % ROUND_ROWS_TO
            self._send(names[start : start + len(lengths)], lengths, spare)
            ids = self._tensor([[*chain.from_iterable(islice(waiting, len(lengths))), *[0] * spare]])
            positions = self._tensor([[*chain.from_iterable(map(range, lengths)), *range(spare)]])
            mask = mask_of(torch.tensor([*lengths, spare] if spare else lengths))
            hidden = self._pass(input_ids=ids, position_ids=positions, attention_mask=mask)
            found.append(hidden[0, torch.tensor(lengths).cumsum(0) - 1])
            start += len(lengths)
        return torch.cat(found)

    @torch.inference_mode()
    def step(self, last: list[int]) -> torch.Tensor:
        """What the head is given after each of the tokens `last`, (slots in use, width), which aren't in their slots yet."""
        positions, mask = self._slots.add(self._model.device, self._model.dtype)
        spare = len(positions) - len(last)
        self._send(self._adapters, [1] * len(last), spare)
        ids = self._tensor([*last, *[0] * spare])[:, None]
        return self._pass(input_ids=ids, position_ids=positions, attention_mask=mask)[: len(last), 0]

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of what the head is given, (rows, width), the logits, (rows, vocabulary)."""
        return linear(hidden, self._head.weight, self._head.bias)

    def likeliest(self, hidden: torch.Tensor) -> list[int]:
        """The most probable next tokens."""
        return self.logits(hidden).max(-1).indices.tolist()

    @torch.inference_mode()
    def drop(self, slot: int, running: list[Any]) -> None:
        """Free `slot`: what is in the last one in use moves there, as it does in `running`, a list by slot."""
        # Slots in use stay the first ones, so that a pass takes them as they lie.
        self._slots.drop(slot)
        for by_slot in (self._adapters, running):
            by_slot[slot] = by_slot[-1]
            by_slot.pop()

    def _send(self, adapters: Sequence[str | None], lengths: Sequence[int], spare: int) -> None:
        """The next pass holds `lengths` tokens of each of these adapters, and `spare` ones that nobody wants."""
        if self._layers is None:
            return
        if len(set(adapters)) == 1:
            self._layers.send(adapters[:1])
            return
        rows = chain.from_iterable([name] * length for name, length in zip(adapters, lengths, strict=True))
        self._layers.send([*rows, *[None] * spare])

    def _tensor(self, numbers: list[Any]) -> torch.Tensor:
        return torch.tensor(numbers, device=self._model.device)

    def _pass(self, **inputs: torch.Tensor) -> torch.Tensor:
        return head_inputs(self._model, **inputs, past_key_values=self._slots, use_cache=True)


def base_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model with its adapters inside, without peft's own wrapping of each call."""
    inside: Any = getattr(model, "get_base_model", lambda: model)
    return inside()
