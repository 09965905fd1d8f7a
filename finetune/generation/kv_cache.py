"""Keys and values of the prompts being answered, and attention over them.

A slot holds one sequence. The slots in use are the first ones. A prompt enters the next slot as part of a packed
forward; then each forward adds a token to every slot, and attends to what lies there, without a copy of it. Slots lie in
blocks of neighbours, each as long as its longest needs for the next tokens; when one is full, all are laid out again. So
the memory is at most slots x positions x what the model keeps of a token (key heads x width, twice, in each layer).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.masking_utils import sdpa_mask

from finetune.kernels import attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NEIGHBOURS = 32
"""Slots of a block: attention over them is one product."""

ROWS = 16
"""Slots in use are rounded up to a multiple of this: a tile of the CPU's matrix unit, and few shapes to compile for."""

GROWTH = 16
"""Tokens that there is room for, at least, when blocks are laid out; lengths of blocks are multiples of it."""

_NAME = "kv_cache"


@dataclass(frozen=True)
class _Block:
    """Neighbouring slots of one length, in storage whose unit is a position of one key head."""

    first: int
    slots: int
    positions: int
    start: int

    def of(self, storage: torch.Tensor, heads: int) -> torch.Tensor:
        """This block's part of (key heads x all positions, width), as (slots, key heads, positions, width)."""
        end = self.start + self.slots * self.positions
        return storage[heads * self.start : heads * end].view(self.slots, heads, self.positions, -1)


class KVCache(Cache):
    """The cache that a model is given: keys and values go to the slots that the forward is about."""

    def __init__(self, count: int) -> None:
        """`count` slots, none in use."""
        super().__init__(layers=[])
        self._count = count
        self._lengths: list[int] = []
        self._blocks: list[_Block] = []
        self._storage: dict[tuple[int, str], tuple[torch.Tensor, int]] = {}
        self._entering: list[tuple[int, int, int]] | None = None

    def enter(self, lengths: list[int]) -> None:
        """Expect a forward of sequences of these lengths end to end, which take the next slots."""
        first, end = len(self._lengths), 0
        self._entering = []
        for slot, length in enumerate(lengths, first):
            self._entering.append((slot, end, end + length))
            end += length
        self._hold([*self._lengths, *lengths])

    def add(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Expect a forward of one token for each slot in use, and for free ones up to a multiple of `ROWS`.

        Returns its positions, (slots, 1), and its attention mask, (slots, 1, 1, positions of the longest block).
        """
        self._entering = None
        before = self._lengths
        self._hold([length + 1 for length in before])
        rows = min(-(-len(before) // ROWS) * ROWS, self._count)
        # What free slots are given lies at their start, over which a prompt writes as it enters.
        self._places = torch.tensor([*before, *[0] * (rows - len(before))])
        self._starts = torch.tensor([b.start + n * b.positions for b in self._blocks for n in range(b.slots)])[:rows]
        self._strides = torch.tensor([b.positions for b in self._blocks for _ in range(b.slots)])[:rows]
        self._index: dict[int, torch.Tensor] = {}
        columns = torch.arange(max(block.positions for block in self._blocks))
        mask = torch.zeros(rows, 1, 1, len(columns), dtype=dtype)
        mask.masked_fill_(columns > self._places[:, None, None, None], torch.finfo(dtype).min)
        mask = mask.to(device)
        mask.blocks = self._blocks  # type: ignore[attr-defined]
        return self._places[:, None].to(device), mask

    def drop(self, slot: int) -> None:
        """Free `slot`: the last one in use moves there."""
        last = len(self._lengths) - 1
        if slot < last:
            length = self._lengths[last]
            self._hold([*self._lengths[:slot], max(length, self._lengths[slot]), *self._lengths[slot + 1 :]])
            for storage, heads in self._storage.values():
                self._slot(storage, heads, slot)[:, :length] = self._slot(storage, heads, last)[:, :length]
            self._lengths[slot] = length
        self._lengths.pop()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep keys and values, each (1, key heads, tokens, width) on entering, else (slots, key heads, 1, width).

        Returns what the forward attends to: themselves on entering, else the storage of all slots.
        """
        keys = self._keep((layer_idx, "keys"), key_states)
        values = self._keep((layer_idx, "values"), value_states)
        return (keys, values) if self._entering is None else (key_states, value_states)

    def _keep(self, name: tuple[int, str], states: torch.Tensor) -> torch.Tensor:
        heads, width = states.shape[1], states.shape[3]
        if name not in self._storage:
            self._storage[name] = (_storage(self._blocks, heads, states), heads)
        storage = self._storage[name][0]
        if self._entering is None:
            storage.index_copy_(0, self._rows(heads, states.device), states.reshape(-1, width))
        else:
            for slot, start, end in self._entering:
                self._slot(storage, heads, slot)[:, : end - start] = states[0, :, start:end]
        return storage

    def _rows(self, heads: int, device: torch.device) -> torch.Tensor:
        """Where in a storage the new tokens go, slot by slot and head by head."""
        if heads not in self._index:
            rows = heads * self._starts[:, None] + self._strides[:, None] * torch.arange(heads) + self._places[:, None]
            self._index[heads] = rows.flatten().to(device)
        return self._index[heads]

    def _slot(self, storage: torch.Tensor, heads: int, slot: int) -> torch.Tensor:
        block = self._blocks[slot // NEIGHBOURS]
        return block.of(storage, heads)[slot - block.first]

    def _hold(self, lengths: list[int]) -> None:
        """Make room for slots of these lengths."""
        self._lengths = lengths
        longest = [max(lengths[first : first + NEIGHBOURS]) for first in range(0, len(lengths), NEIGHBOURS)]
        if len(longest) <= len(self._blocks) and all(
            length <= block.positions for length, block in zip(longest, self._blocks, strict=False)
        ):
            return
        before, self._blocks, start = self._blocks, [], 0
        for number, length in enumerate(longest):
            first, positions = number * NEIGHBOURS, -(-(length + GROWTH) // GROWTH) * GROWTH
            slots = min(NEIGHBOURS, self._count - first)
            self._blocks.append(_Block(first, slots, positions, start))
            start += slots * positions
        for name, (old, heads) in self._storage.items():
            new = _storage(self._blocks, heads, old)
            for one, other in zip(before, self._blocks, strict=False):
                both = min(one.positions, other.positions)
                other.of(new, heads)[:, :, :both] = one.of(old, heads)[:, :, :both]
            self._storage[name] = new, heads


def _storage(blocks: list[_Block], heads: int, like: torch.Tensor) -> torch.Tensor:
    # Zeros, because a masked position still multiplies what lies there, and 0 times NaN is NaN.
    return like.new_zeros(heads * sum(block.slots * block.positions for block in blocks), like.shape[-1])


@contextmanager
def attending_to_cache(model: PreTrainedModel) -> Iterator[None]:
    """Forwards of `model` within the block attend to the slots of their cache."""
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
    """Attention of one new token in each slot: query (slots, heads, 1, width), key and value the storage of all.

    Returns (slots, 1, heads, width). Packed forwards go to `kernels.attention`.
    """
    blocks: list[_Block] | None = getattr(attention_mask, "blocks", None)
    if attention_mask is None or blocks is None:
        return attention.attend(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    attention.check_is_plain(kwargs, attention_mask.shape[-1])
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    heads = len(key) // sum(block.slots * block.positions for block in blocks)
    out = query.new_empty(*query.shape[:3], value.shape[-1])
    for block in blocks:
        part = slice(block.first, block.first + block.slots)
        count = len(query[part])
        if not count:  # its slots are free
            break
        mask = attention_mask[part, ..., : block.positions]
        out[part] = _over(query[part], block.of(key, heads)[:count], block.of(value, heads)[:count], mask)
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
