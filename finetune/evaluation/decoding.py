"""Greedy decoding with continuous batching: a prompt that is answered leaves at once, and a waiting one takes its slot.

Which models this works for isn't told by their names: `prepared` compares it with the model's own forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftModel
from torch.nn.functional import linear

from finetune.device import is_out_of_memory
from finetune.evaluation.products import joined
from finetune.evaluation.slots import Slots, attending_to_slots
from finetune.kernels.attention import ROUND_ROWS_TO, mask_of
from finetune.kernels.loss import head_inputs
from finetune.kernels.packing import TOKENS_PER_PASS, grouped
from finetune.models.probe import TOLERANCE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def tokens(
    model: PreTrainedModel | PeftModel,
    prompts: list[list[int]],
    *,
    slots: int,
    max_new_tokens: int,
    ends: Sequence[int],
) -> Iterator[tuple[int, int]]:
    """Yield (number of the prompt, token) for every token of the greedy answers, each prompt's in their order.

    An answer closes with one of `ends`, or after `max_new_tokens`. At most `slots` prompts are answered at a time.
    """
    waiting = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # the longest is at the end
    slots = min(slots, len(prompts))
    decoder = _Decoder(model, slots)
    running: list[_Answer] = []  # by slot
    # A few at a time, since a pass goes through the same weights whether it is for one prompt or for ten.
    few = max(1, slots // 8)
    while waiting or running:
        free = slots - len(running)
        if waiting and (free >= min(few, len(waiting)) or not running):
            entering = [waiting.pop() for _ in range(min(free, len(waiting)))]
            made = decoder.enter([prompts[index] for index in entering])
            fresh = [_Answer(index) for index in entering]
            running += fresh
        else:
            made, fresh = decoder.step([answer.last for answer in running]), running
        for answer, token in zip(fresh, made, strict=True):
            answer.tokens, answer.last = answer.tokens + 1, token
            yield answer.prompt, token
        for slot in reversed(range(len(running))):
            if running[slot].tokens == max_new_tokens or running[slot].last in ends:
                # Slots in use stay the first ones, so that a pass takes them as they lie.
                decoder.drop(slot)
                running[slot] = running[-1]
                running.pop()


@dataclass
class _Answer:
    """What is made of a prompt so far."""

    prompt: int
    tokens: int = 0
    last: int = -1


@contextmanager
def prepared(model: PreTrainedModel | PeftModel, prompts: list[list[int]], max_new_tokens: int) -> Iterator[bool]:
    """Make `model` ready for `tokens` within the block; False, and nothing changed, if its own answers would be others.

    It is tried on the longest and the shortest of `prompts`, as long as the answers can make them.
    """
    base = _base(model)
    short, long = min(prompts, key=len), max(prompts, key=len)
    tried = [_lengthened(long, len(long) + max_new_tokens), _lengthened(short, len(short) + 1)]
    logits: list[torch.Tensor] = []
    with ExitStack() as undo:
        try:
            hidden = [head_inputs(base, input_ids=_ids(base, ids))[0, -2:] for ids in tried]
            undo.enter_context(attending_to_slots(base))
            whole = partial(base, input_ids=_ids(base, tried[-1]), use_cache=False)
            undo.enter_context(joined(base, lambda: logits.append(whole().logits[0, -2:])))
            head: Any = base.get_output_embeddings()
            ready = _is_near(linear(hidden[-1], head.weight, head.bias), logits[0])
            ready = ready and _is_near(_in_slots(base, tried), torch.cat(hidden))
        except Exception as error:  # what a model can't be asked it answers with all kinds of errors
            if is_out_of_memory(error):
                raise
            ready = False
        if not ready:
            undo.close()
        yield ready


def _lengthened(ids: list[int], size: int) -> list[int]:
    return (ids * -(-size // len(ids)))[:size]


def _ids(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return torch.tensor([ids], device=model.device)


def _in_slots(model: PreTrainedModel, rows: list[list[int]]) -> torch.Tensor:
    """What the head is given at the last two tokens of each of `rows`, of which the last comes in a pass of its own."""
    decoder = _Decoder(model, len(rows))
    before = decoder.entering([ids[:-1] for ids in rows])
    last = decoder.stepping([ids[-1] for ids in rows])
    return torch.stack([before, last], 1).flatten(0, 1)


def _is_near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether each row's difference is as small beside the row as rounding makes it."""
    difference = (found.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)
    return bool((difference < TOLERANCE[expected.dtype]).all())


class _Decoder:
    """Passes of a model over slots."""

    def __init__(self, model: PreTrainedModel | PeftModel, slots: int) -> None:
        self.model = _base(model)
        self._slots = Slots(slots)
        self._head: Any = self.model.get_output_embeddings()

    @torch.inference_mode()
    def enter(self, prompts: list[list[int]]) -> list[int]:
        """Prompts take the next slots; the token after each."""
        return self._likeliest(self.entering(prompts))

    @torch.inference_mode()
    def step(self, last: list[int]) -> list[int]:
        """The next token of each slot in use, whose last token isn't in its slot yet."""
        return self._likeliest(self.stepping(last))

    @torch.inference_mode()
    def drop(self, slot: int) -> None:
        """Free `slot`: the last one in use moves there."""
        self._slots.drop(slot)

    @torch.inference_mode()
    def entering(self, prompts: list[list[int]]) -> torch.Tensor:
        """What the head is given after each prompt, (prompts, width)."""
        found = []
        waiting = iter(prompts)
        for lengths in grouped(map(len, prompts), TOKENS_PER_PASS):
            self._slots.enter(lengths)
            spare = -sum(lengths) % ROUND_ROWS_TO
            ids = self._tensor([[*chain.from_iterable(islice(waiting, len(lengths))), *[0] * spare]])
            positions = self._tensor([[*chain.from_iterable(map(range, lengths)), *range(spare)]])
            mask = mask_of(torch.tensor([*lengths, spare] if spare else lengths))
            hidden = self._pass(input_ids=ids, position_ids=positions, attention_mask=mask)
            found.append(hidden[0, torch.tensor(lengths).cumsum(0) - 1])
        return torch.cat(found)

    @torch.inference_mode()
    def stepping(self, last: list[int]) -> torch.Tensor:
        """What the head is given after each of the tokens `last`, (slots in use, width)."""
        positions, mask = self._slots.add(self.model.device, self.model.dtype)
        ids = self._tensor([*last, *[0] * (len(positions) - len(last))])[:, None]
        return self._pass(input_ids=ids, position_ids=positions, attention_mask=mask)[: len(last), 0]

    def _likeliest(self, hidden: torch.Tensor) -> list[int]:
        return linear(hidden, self._head.weight, self._head.bias).max(-1).indices.tolist()

    def _tensor(self, numbers: list[Any]) -> torch.Tensor:
        return torch.tensor(numbers, device=self.model.device)

    def _pass(self, **inputs: torch.Tensor) -> torch.Tensor:
        return head_inputs(self.model, **inputs, past_key_values=self._slots, use_cache=True)


def _base(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model with its adapters inside, without peft's own wrapping of each call."""
    return cast("PreTrainedModel", model.get_base_model()) if isinstance(model, PeftModel) else model
