"""Linear layers as generation wants them: few rows, the same weights at every token.

Layers that are given the same tensor are one product, their adapters' first halves (x Aᵀ) part of it; adapters are cast
and scaled once. Weights in 4 bits are de-quantised at each use, into one workspace for all, so that no more than the
layers of one product are there in 16 bits at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from finetune.kernels.joint_adapters import JointAdapters
from finetune.kernels.linear_parts import LinearParts, dequantizer, linear_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEW = 256
"""Rows up to which a product is arranged for its weights; above, for its rows."""


@contextmanager
def joined(model: PreTrainedModel, run: Callable[[], object]) -> Iterator[None]:
    """Linear layers of `model` are joined within the block, by what `run` (a pass of the model) shows them to be given."""
    groups = [_Group(members) for members in _sharing_inputs(model, run)]
    sizes = [group.size for group in groups if group.quantized]
    before = {layer: vars(layer).get("forward") for group in groups for layer in group.layers}
    workspaces: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
    try:
        for group in groups:
            group.join(workspaces, max(sizes, default=0))
            for number, layer in enumerate(group.layers):
                layer.forward = partial(group, number)
        yield
    finally:
        for layer, forward in before.items():
            if forward is None:
                vars(layer).pop("forward", None)
            else:
                layer.forward = forward


def _sharing_inputs(model: PreTrainedModel, run: Callable[[], object]) -> list[list[LinearParts]]:
    """The linear layers that `run` calls, but the head; those given the same tensor, one after another, together."""
    head = model.get_output_embeddings()
    adapted = {layer for layer in model.modules() if isinstance(layer, LoraLayer)}
    inside = {part for layer in adapted for part in cast(nn.Module, layer).modules()} - adapted
    linear = {layer: linear_parts(layer) for layer in model.modules() if layer is not head and layer not in inside}
    called: list[tuple[LinearParts, torch.Tensor]] = []

    def note(parts: LinearParts, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs:  # else they are named, and the layer keeps its own forward
            called.append((parts, inputs[0]))

    handles = [
        layer.register_forward_pre_hook(partial(note, parts)) for layer, parts in linear.items() if parts is not None
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    groups = [[parts for parts, _ in one] for _, one in groupby(called, lambda call: (id(call[1]), call[0].kind))]
    times = [layer.layer for layer, _ in called]
    return [group for group in groups if all(times.count(one.layer) == 1 for one in group)]


class _Group:
    """Linear layers that are given the same tensor."""

    def __init__(self, members: list[LinearParts]) -> None:
        self.layers = [one.layer for one in members]
        self.quantized = members[0].state is not None
        self._members = members
        self._outs = [one.shape[0] for one in members]
        self._out, self._in = sum(self._outs), members[0].shape[1]
        self._widens = min(self._outs) > self._in
        self._input: torch.Tensor | None = None
        self._results: list[torch.Tensor | None] = []
        self._adapters = JointAdapters(members)
        self._adapters.cast()
        self._rank = self._adapters.rank
        dtype, device = members[0].dtype, members[0].weight.device
        biases = [getattr(one.base, "bias", None) for one in members]
        self._bias = None
        if any(bias is not None for bias in biases):
            zeros = [torch.zeros(out, dtype=dtype, device=device) for out in self._outs]
            self._bias = torch.cat([zero if b is None else b.to(dtype) for zero, b in zip(zeros, biases, strict=True)])

    @property
    def size(self) -> int:
        return (self._out + self._rank) * self._in

    def join(self, workspaces: dict[tuple[torch.device, torch.dtype], torch.Tensor], largest: int) -> None:
        """Lay the weights out as one matrix, (out + rank, in): now, or in a workspace at each use."""
        first = self._members[0]
        shape = (self._out + self._rank, self._in)
        if self.quantized:
            key = first.weight.device, first.dtype
            if key not in workspaces:
                workspaces[key] = torch.empty(largest, device=key[0], dtype=key[1])
            self._matrix = workspaces[key][: self.size].view(shape)
            into = self._matrix.split([*self._outs, self._rank])
            self._fill = [
                dequantizer(one, part, constants_held=True) for one, part in zip(self._members, into, strict=False)
            ]
            return
        if len(self._members) == 1 and not self._rank:
            self._matrix = first.weight.data.t() if isinstance(first.base, Conv1D) else first.weight.data
            return
        self._matrix = torch.empty(shape, device=first.weight.device, dtype=first.dtype)
        for one, part in zip(self._members, self._matrix.split([*self._outs, self._rank]), strict=False):
            # The layer's own weight is now a part of the matrix, so that it isn't held twice.
            if isinstance(one.base, Conv1D):
                part = part.t()
            one.weight.data = part.copy_(one.weight.data)
        self._append_down()

    def _append_down(self) -> None:
        self._matrix[self._out :].copy_(self._adapters.down)

    def __call__(self, number: int, x: torch.Tensor) -> torch.Tensor:
        """What the layer of this number gives for `x`; the first that is asked computes it for all."""
        if x is not self._input:
            self._input, self._results = x, list(self._multiply(x))
        result, self._results[number] = self._results[number], None
        if result is None:
            self._input = None
            return self(number, x)
        if all(one is None for one in self._results):
            self._input = None
        return result

    def _multiply(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        if self.quantized:
            for fill in self._fill:
                fill()
            self._append_down()
        rows = x.reshape(-1, self._in).to(self._matrix.dtype)
        y = self._few(rows) if len(rows) <= FEW else self._many(rows)
        for part in y.split(self._outs, dim=1):
            yield part.view(*x.shape[:-1], part.shape[1])

    def _few(self, rows: torch.Tensor) -> torch.Tensor:
        # Weights first: as they lie they are the left side of a product; on its right a CPU copies them into another
        # order at each use, which for few rows takes as long as the product.
        y = torch.mm(self._matrix, rows.t())
        y, squeezed = y[: self._out], y[self._out :]
        if self._bias is not None:
            y += self._bias[:, None]
        if self._rank:
            y.addmm_(self._adapters.up, squeezed)
        # What a layer widens goes through an activation, number by number, and is then taken as it lies by a product.
        return y.t() if self._widens else y.t().contiguous()

    def _many(self, rows: torch.Tensor) -> torch.Tensor:
        y = torch.mm(rows, self._matrix.t())
        y, squeezed = y[:, : self._out], y[:, self._out :]
        if self._bias is not None:
            y += self._bias
        return torch.addmm(y, squeezed, self._adapters.up.t()) if self._rank else y
