"""The memory of a pass through a model's own layers, counted: the pass is made on the meta device, where tensors have
shapes and no memory, and every tensor's bytes are noted from its making to its end (as PyTorch's MemTracker does)."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from finetune.errors import UserError, first_line
from finetune.kernels.attention import mask_of
from finetune.kernels.loss import head_inputs
from finetune.models.loading import layer_stack
from finetune.planner.passes import Pass

FEW, MORE = 2, 4
"""Layers, or sequences, of the two passes that are counted where each further one adds the same."""


@dataclass(frozen=True)
class Counted:
    """Bytes above what the model holds, gradients of weights left out."""

    kept: int
    """For the backward pass, when the forward pass is at its end."""
    most: int
    """At any time of the two passes."""
    made: int
    """Of all tensors that the two passes make, however short they live."""


def count(model: Any, at: Pass, *, checkpointing: bool) -> Counted:
    """A pass as large as `at` and its backward pass, on the device whose attention `model` has."""
    sequences, rest = divmod(at.tokens, at.longest)
    if sequences <= MORE:
        return _of_layers(model, (*[at.longest] * sequences, *[rest] * bool(rest)), checkpointing)
    few, more = (_of_layers(model, (at.longest,) * number, checkpointing) for number in (FEW, MORE))
    return _further(few, more, at.tokens / at.longest)


@lru_cache(maxsize=64)  # looking for the most that fits asks again
def _of_layers(model: Any, lengths: tuple[int, ...], checkpointing: bool) -> Counted:
    (model.gradient_checkpointing_enable if checkpointing else model.gradient_checkpointing_disable)()
    layers = layer_stack(model)
    if len(layers) <= MORE or len({_shapes(layer) for layer in layers}) > 1:
        return _passes(model, lengths)
    few, more = (_of_fewer_layers(model, number, lengths) for number in (FEW, MORE))
    return _further(few, more, len(layers))


def _further(few: Counted, more: Counted, number: float) -> Counted:
    """What so many take, if each further one adds the same."""
    share = (number - FEW) / (MORE - FEW)
    kept, most, made = (
        round(getattr(few, name) + share * (getattr(more, name) - getattr(few, name)))
        for name in ("kept", "most", "made")
    )
    return Counted(kept, max(kept, most), made)


def _shapes(layer: nn.Module) -> tuple[Any, ...]:
    return tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())


def _of_fewer_layers(model: nn.Module, number: int, lengths: tuple[int, ...]) -> Counted:
    with _only(model, number):
        return _passes(model, lengths)


@contextmanager
def _only(model: nn.Module, number: int) -> Iterator[None]:
    """Let `model` have its first layers alone."""
    layers = layer_stack(model)
    name, parent = next(
        (name, parent)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and list(child) == layers
    )
    setattr(parent, name, nn.ModuleList(layers[:number]))
    try:
        yield
    finally:
        setattr(parent, name, nn.ModuleList(layers))


def _passes(model: Any, lengths: tuple[int, ...]) -> Counted:
    ids = torch.zeros(1, sum(lengths), dtype=torch.long, device="meta")
    drops = [one.register_post_accumulate_grad_hook(_drop) for one in model.parameters() if one.requires_grad]
    try:
        with _refusing(model), _Live(model) as live:
            hidden = head_inputs(model, input_ids=ids, position_ids=ids, attention_mask=mask_of(torch.tensor(lengths)))
            kept = live.bytes
            hidden.backward(torch.empty_like(hidden))
    finally:
        for drop in drops:
            drop.remove()
    return Counted(kept, live.most, live.made)


@contextmanager
def _refusing(model: Any) -> Iterator[None]:
    """What a family does on the meta device, where no number can be asked for, fails in all kinds of ways."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"model.source: what {model.config.model_type} models take can't be planned ({type(error).__name__}: "
            f"{first_line(error)}); train without a plan"
        ) from error


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


class _Live(TorchDispatchMode):
    """Counts the bytes of the storages that are made while it is on and still there."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.bytes = self.most = self.made = 0
        # Their views come as results too.
        self._held = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        self._known: dict[int, int] = {}

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
