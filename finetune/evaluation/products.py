"""Linear layers as generation wants them: few rows, the same weights at every token.

Layers that are given the same tensor are one product; their adapters, of which there may be several, are two more,
cast and scaled once. Weights in 4 bits are de-quantised at each use, into one workspace for all, so that no more than
the layers of one product are there in 16 bits at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from finetune.evaluation.routes import OWN, HeldAdapters, Route
from finetune.kernels.linear_parts import Adapter, LinearParts, dequantizer, is_lora, linear_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEW = 256
"""Rows up to which a product is arranged for its weights; above, for its rows."""


class Joined:
    """A model's joined layers, and the adapters beside them. Passes take the model's own adapter, until one is sent."""

    def __init__(self, groups: Sequence[_Group], names: Mapping[nn.Module, str]) -> None:
        self._groups, self._names = groups, names
        self._sent: list[str | None] = []
        self.send([OWN])

    def hold(self, name: str, adapter: Mapping[str, Adapter]) -> int:
        """Hold an adapter beside the others: (path of a layer in the model: its part). Returns the bytes that it takes.

        Raises ValueError if a part fits no joined layer. Nothing is held then.
        """
        shapes = {self._names[one.layer]: one.shape for group in self._groups for one in group.members}
        for path, part in adapter.items():
            given = len(part.up), part.down.shape[1]
            if shapes.get(path) != given:
                raise ValueError(
                    f"{path} is {given[0]} x {given[1]} in the adapter, and by the model {shapes.get(path)}"
                )
        return sum(
            group.held.hold(name, [adapter.get(self._names[one.layer]) for one in group.members])
            for group in self._groups
        )

    def drop(self, name: str) -> None:
        """Forget the adapter called `name`."""
        for group in self._groups:
            group.held.drop(name)

    def send(self, rows: Sequence[str | None]) -> None:
        """The next passes' rows take these adapters (None: the base alone); a single name goes for all rows."""
        if self._sent == rows:
            return
        self._sent, route = list(rows), Route(rows)
        for group in self._groups:
            group.route = route


@contextmanager
def joined(model: PreTrainedModel, run: Callable[[], object]) -> Iterator[Joined]:
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
        yield Joined(groups, {module: name for name, module in model.named_modules()})
    finally:
        for layer, forward in before.items():
            if forward is None:
                vars(layer).pop("forward", None)
            else:
                layer.forward = forward


def _sharing_inputs(model: PreTrainedModel, run: Callable[[], object]) -> list[list[LinearParts]]:
    """The linear layers that `run` calls, but the head; those given the same tensor, one after another, together."""
    head = model.get_output_embeddings()
    adapted: set[nn.Module] = {layer for layer in model.modules() if is_lora(layer)}
    inside = {part for layer in adapted for part in layer.modules()} - adapted
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
        self.members = members
        self.held = HeldAdapters(members)
        self.route: Route
        self._outs = [one.shape[0] for one in members]
        self._out, self._in = sum(self._outs), members[0].shape[1]
        self._widens = min(self._outs) > self._in
        self._input: torch.Tensor | None = None
        self._results: list[torch.Tensor | None] = []
        dtype, device = members[0].dtype, members[0].weight.device
        biases = [getattr(one.base, "bias", None) for one in members]
        self._bias = None
        if any(bias is not None for bias in biases):
            zeros = [torch.zeros(out, dtype=dtype, device=device) for out in self._outs]
            self._bias = torch.cat([zero if b is None else b.to(dtype) for zero, b in zip(zeros, biases, strict=True)])

    @property
    def size(self) -> int:
        return self._out * self._in

    def join(self, workspaces: dict[tuple[torch.device, torch.dtype], torch.Tensor], largest: int) -> None:
        """Lay the weights out as one matrix, (out, in): now, or in a workspace at each use."""
        first = self.members[0]
        shape = (self._out, self._in)
        if self.quantized:
            key = first.weight.device, first.dtype
            if key not in workspaces:
                workspaces[key] = torch.empty(largest, device=key[0], dtype=key[1])
            self._matrix = workspaces[key][: self.size].view(shape)
            into = self._matrix.split(self._outs)
            self._fill = [
                dequantizer(one, part, constants_held=True) for one, part in zip(self.members, into, strict=True)
            ]
            return
        if len(self.members) == 1:
            self._matrix = first.weight.data.t() if isinstance(first.base, Conv1D) else first.weight.data
            return
        self._matrix = torch.empty(shape, device=first.weight.device, dtype=first.dtype)
        for one, part in zip(self.members, self._matrix.split(self._outs), strict=True):
            # The layer's own weight is now a part of the matrix, so that it isn't held twice.
            if isinstance(one.base, Conv1D):
                part = part.t()
            one.weight.data = part.copy_(one.weight.data)

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
        rows = x.reshape(-1, self._in).to(self._matrix.dtype)
        y = self._few(rows) if len(rows) <= FEW else self._many(rows)
        for part in y.split(self._outs, dim=1):
            yield part.view(*x.shape[:-1], part.shape[1])

    def _few(self, rows: torch.Tensor) -> torch.Tensor:
        # Weights first: as they lie they are the left side of a product; on its right a CPU copies them into another
        # order at each use, which for few rows takes as long as the product.
        y = torch.mm(self._matrix, rows.t())
        if self._bias is not None:
            y += self._bias[:, None]
        taken = self.held.taken(self.route)
        if taken:
            squeezed = torch.mm(taken.down, rows.t())
            y.addmm_(taken.up, squeezed if taken.mask is None else squeezed.mul_(taken.mask.t()))
        # What a layer widens goes through an activation, number by number, and is then taken as it lies by a product.
        return y.t() if self._widens else y.t().contiguous()

    def _many(self, rows: torch.Tensor) -> torch.Tensor:
        y = torch.mm(rows, self._matrix.t())
        if self._bias is not None:
            y += self._bias
        taken = self.held.taken(self.route)
        if taken:
            squeezed = torch.mm(rows, taken.down.t())
            y.addmm_(squeezed if taken.mask is None else squeezed.mul_(taken.mask), taken.up.t())
        return y
