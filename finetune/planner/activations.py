"""Activation memory, counted: a forward and a backward pass are made on the meta device.

There tensors have shapes and no memory. The model is the one that trains, with the same kernels, and each tensor's bytes
are counted from its making to its end (as PyTorch's MemTracker does). Only FlashAttention is stood in for.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from finetune.errors import UserError, first_line
from finetune.kernels.attention import ATTENTION_NAME, mask_of
from finetune.kernels.decoder import replace_decoder_layers
from finetune.kernels.loss import head_inputs
from finetune.models.loading import layer_stack
from finetune.planner.records import MicroBatch

LAYERS, SEQUENCES, TOKENS = (3, 4), (1, 2), (512, 1024)
"""Two counts from which that of more layers, more sequences or longer sequences follows: each further one adds the same."""

ATTENTION = {"cpu": ATTENTION_NAME, "cuda": "planned for CUDA"}
"""`attn_implementation` of a model that is counted, by the device that is planned for."""


@dataclass(frozen=True)
class ActivationBytes:
    """Bytes above what the model holds; the gradients of its weights are left out."""

    saved: int
    """What the forward pass saves for the backward pass."""
    forward: int
    """What exists when the forward pass ends."""
    most: int
    """The peak of the two passes."""
    after: int
    """What exists when the backward pass ends: blocks that the layers use again."""
    made: int
    """The sum of all tensors that are made, however briefly they exist."""


def count(model: Any, at: MicroBatch, *, checkpointing: bool, joint: bool) -> ActivationBytes:
    """The activations of micro-batch `at` in `model`, which is on the meta device.

    `joint`: its decoder layers run as `kernels.decoder` makes them on a CPU. Raises UserError for a model that can't be
    run without numbers.
    """
    if at.longest > TOKENS[1] and not _attention_drops(model):
        shorter = (_with_sequences_of(tokens, at) for tokens in TOKENS)
        counts = [count(model, one, checkpointing=checkpointing, joint=joint) for one in shorter]
        return _extrapolated(counts, TOKENS, at.longest)
    sequences, rest = divmod(at.tokens, at.longest)
    if sequences <= SEQUENCES[1]:
        lengths = (*[at.longest] * sequences, *[rest] * bool(rest))
        return _in_all_layers(model, lengths, at.room, checkpointing, joint)
    several = ((at.longest,) * number for number in SEQUENCES)
    counts = [_in_all_layers(model, lengths, sum(lengths), checkpointing, joint) for lengths in several]
    return _extrapolated(counts, SEQUENCES, at.tokens / at.longest)


def _attention_drops(model: Any) -> bool:
    """Whether attention has dropout, under which PyTorch keeps every probability: the square of a sequence's length."""
    return any(getattr(model.config, name, 0) for name in ("attention_dropout", "attn_pdrop"))


def _with_sequences_of(tokens: int, at: MicroBatch) -> MicroBatch:
    scaled = round(at.tokens * tokens / at.longest)
    return replace(at, tokens=scaled, longest=tokens, room=scaled + at.room - at.tokens)


@lru_cache(maxsize=64)  # the search for the largest settings asks again
def _in_all_layers(
    model: Any, lengths: tuple[int, ...], room: int, checkpointing: bool, joint: bool
) -> ActivationBytes:
    (model.gradient_checkpointing_enable if checkpointing else model.gradient_checkpointing_disable)()
    layers = layer_stack(model)
    if len(layers) <= LAYERS[1] or len({_shapes(layer) for layer in layers}) > 1:
        return _in_layers(model, len(layers), lengths, room, joint)
    return _extrapolated([_in_layers(model, one, lengths, room, joint) for one in LAYERS], LAYERS, len(layers))


def _extrapolated(counts: list[ActivationBytes], numbers: tuple[int, int], number: float) -> ActivationBytes:
    share = (number - numbers[0]) / (numbers[1] - numbers[0])
    return ActivationBytes(*(round(a + share * (b - a)) for a, b in zip(*map(astuple, counts), strict=True)))


def _shapes(layer: nn.Module) -> tuple[Any, ...]:
    return tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())


def _in_layers(model: Any, number: int, lengths: tuple[int, ...], room: int, joint: bool) -> ActivationBytes:
    with _first_layers(model, number) as layers, _refusing(model):
        if joint:
            replace_decoder_layers(model, layers, room)
        return _counted(model, lengths, joint)


@contextmanager
def _first_layers(model: nn.Module, number: int) -> Iterator[list[nn.Module]]:
    """Let `model` have its first layers only; their own forward is restored afterwards."""
    layers = layer_stack(model)
    name, parent = next(
        (name, parent)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and list(child) == layers
    )
    setattr(parent, name, nn.ModuleList(layers[:number]))
    try:
        yield layers[:number]
    finally:
        setattr(parent, name, nn.ModuleList(layers))
        for layer in layers:
            vars(layer).pop("forward", None)


@contextmanager
def _refusing(model: Any) -> Iterator[None]:
    """Without numbers, model families fail in all kinds of ways."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"model.source: the memory of {model.config.model_type} models can't be planned ({type(error).__name__}: "
            f"{first_line(error)}); train without a plan"
        ) from error


def _counted(model: Any, lengths: tuple[int, ...], joint: bool) -> ActivationBytes:
    ids = torch.zeros(1, sum(lengths), dtype=torch.long, device="meta")

    def forward() -> torch.Tensor:
        return head_inputs(model, input_ids=ids, position_ids=ids, attention_mask=mask_of(torch.tensor(lengths)))

    drops = [one.register_post_accumulate_grad_hook(_drop) for one in model.parameters() if one.requires_grad]
    try:
        with _Counter(model) as counter:
            if joint:  # validation has blocks of its own, which stay
                with torch.no_grad():
                    forward()
            with counter.saving():
                hidden = forward()
            saved, held = counter.saved(), counter.bytes
            hidden.backward(torch.empty_like(hidden))
            del hidden
            # From the second step on, all blocks are there when the forward pass ends.
            return ActivationBytes(saved, max(held, counter.bytes), counter.most, counter.bytes, counter.made)
    finally:
        for drop in drops:
            drop.remove()


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


class _Counter(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, from their making to their end."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.bytes = self.most = self.made = 0
        self._saved: set[int] = set()
        # Views of parameters are results of operations too.
        self._held = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        self._known: dict[int, int] = {}

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Note what is saved for a backward pass."""

        def note(tensor: torch.Tensor) -> torch.Tensor:
            self._saved.add(tensor.untyped_storage()._cdata)
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            yield

    def saved(self) -> int:
        """Bytes of what was noted and still exists."""
        return sum(self._known.get(key, 0) for key in self._saved)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                self._add(tensor.untyped_storage())
        self.most = max(self.most, self.bytes)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known and key not in self._held:
            self._known[key] = storage.nbytes()
            self.bytes += storage.nbytes()
            self.made += storage.nbytes()
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.bytes -= self._known.pop(key)


def _flash_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    lengths = mask.flatten().tolist()
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    return torch.cat([_Flash.apply(*part) for part in parts], 2).transpose(1, 2), None


AttentionInterface.register(ATTENTION["cuda"], _flash_attention)
AttentionMaskInterface.register(ATTENTION["cuda"], sdpa_mask)


class _Flash(torch.autograd.Function):
    """What FlashAttention saves: queries, keys, values, result, and a number for each query (Dao et al. 2022, section 3.1)."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(one) for one in ctx.saved_tensors[:3])
