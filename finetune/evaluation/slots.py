"""Keys and values of the prompts being answered, in fixed slots, and attention over them.

A slot holds one sequence from its first position on. Memory is taken once: slots x positions x what the model keeps of a
token (twice its key heads x width, in each layer). A prompt enters a free slot as part of a packed pass; then each
pass adds a token to every slot in use, and attends to what lies there, without a copy of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.masking_utils import sdpa_mask

from finetune.kernels import attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POSITIONS = 32
"""Slots are attended to up to a multiple of this many positions: each new shape costs a compiled kernel."""

NEIGHBOURS = 32
"""Slots attended to together, as far as the longest of them reaches."""

_NAME = "slots"


class Slots(Cache):
    """The cache that a model is given: what it updates goes to the slots that the pass is about."""

    def __init__(self, slots: int, positions: int) -> None:
        """Room for `slots` sequences of `positions` tokens, taken when the first pass tells their shape."""
        super().__init__(layers=[])
        self._slots, self._positions = slots, -(-positions // POSITIONS) * POSITIONS
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        self._entering: list[tuple[int, int, int]] | None = None

    def enter(self, slots: list[int], lengths: list[int]) -> None:
        """The next pass holds sequences of these lengths end to end; each begins its slot."""
        ends = torch.tensor(lengths).cumsum(0).tolist()
        self._entering = [(slot, end - size, end) for slot, size, end in zip(slots, lengths, ends, strict=True)]

    def add(self, lengths: torch.Tensor) -> torch.Tensor:
        """The next pass holds one token for each of the first slots, which hold `lengths` (slots) tokens before it.

        Returns the attention mask of that pass, (slots, 1, 1, positions).
        """
        self._entering = None
        self._row, self._position = torch.arange(len(lengths), device=lengths.device), lengths
        # Neighbours reach about as far, since prompts enter by length; a single long one is not waited for by all.
        longest = [int(part.max()) + 1 for part in lengths.split(NEIGHBOURS)]
        reach = [min(-(-size // POSITIONS) * POSITIONS, self._positions) for size in longest]
        columns = torch.arange(max(reach), device=lengths.device)
        dtype = next(iter(self._keys.values())).dtype
        mask = torch.zeros(len(lengths), 1, 1, max(reach), device=lengths.device, dtype=dtype)
        mask.masked_fill_(columns > lengths[:, None, None, None], torch.finfo(dtype).min)
        mask.reach = reach  # type: ignore[attr-defined]
        return mask

    def move(self, origin: int, target: int) -> None:
        """Let slot `target` hold what slot `origin` holds."""
        for tensor in (*self._keys.values(), *self._values.values()):
            tensor[target].copy_(tensor[origin])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep keys and values, each (1, key heads, tokens, width) on entering, else (slots, key heads, 1, width).

        Returns what the pass attends to.
        """
        if layer_idx not in self._keys:
            self._keys[layer_idx], self._values[layer_idx] = self._room(key_states), self._room(value_states)
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if self._entering is None:
            keys[self._row, :, self._position] = key_states[:, :, 0]
            values[self._row, :, self._position] = value_states[:, :, 0]
            return keys[: len(self._row)], values[: len(self._row)]
        for slot, start, end in self._entering:
            keys[slot, :, : end - start] = key_states[0, :, start:end]
            values[slot, :, : end - start] = value_states[0, :, start:end]
        return key_states, value_states

    def _room(self, like: torch.Tensor) -> torch.Tensor:
        # Zeros, because a masked position still multiplies what lies there, and 0 times NaN is NaN.
        return like.new_zeros(self._slots, like.shape[1], self._positions, like.shape[3])


@contextmanager
def attending_to_slots(model: PreTrainedModel) -> Iterator[None]:
    """Passes of `model` within the block attend to the slots of their cache."""
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one new token in each slot: query (slots, heads, 1, width), key and value all of the slots.

    Returns (slots, 1, heads, width). Packed passes go to `kernels.attention`.
    """
    reach = getattr(attention_mask, "reach", None)
    if attention_mask is None or reach is None:
        return attention.attend(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    attention._check_is_plain(kwargs, max(reach))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = query.new_empty(*query.shape[:3], value.shape[-1])
    for number, positions in enumerate(reach):
        part = slice(number * NEIGHBOURS, (number + 1) * NEIGHBOURS)
        out[part] = _over(
            query[part] * scaling, key[part, :, :positions], value[part, :, :positions], attention_mask[part, ..., :positions]
        )
    return out.transpose(1, 2), None


def _over(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """softmax(q kT + mask) v: query (slots, heads, 1, width), key and value (slots, key heads, positions, width)."""
    slots, groups, positions, width = key.shape
    # Heads that share a key head are rows of one product. Keys come first in it: as they lie they are its left side,
    # where on a CPU the right side would be copied into another order.
    q = query.reshape(slots * groups, -1, width)
    k, v = key.flatten(0, 1), value.flatten(0, 1)
    scores = query.new_empty(len(q), q.shape[1], positions)
    scores.copy_(torch.bmm(k, q.transpose(1, 2)).transpose(1, 2))
    scores.view(slots, -1, positions).add_(mask[:, 0])
    return torch.bmm(scores.softmax(-1), v).view(slots, -1, 1, v.shape[-1])


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, sdpa_mask)
