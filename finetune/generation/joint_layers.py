"""Linear layers as generation wants them: few rows, the same weights at every token.

Layers that are given the same tensor are one product; their adapters, of which there may be several, are two more,
cast and scaled once. All that are loaded lie end to end in two matrices: rows of one adapter take a part of both as it
lies; where a batch mixes adapters, one product serves all its rows, and a mask puts zeros where x Aᵀ is another's.
Weights in 4 bits are de-quantised at each use, into one workspace for all, so that no more than the layers of one
product are there in 16 bits at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from finetune.kernels.calls import recorded_calls, sharing_input
from finetune.kernels.joint_linear import JointAdapters, JointWeights, lay_out
from finetune.kernels.linear_parts import Adapter, LinearParts, is_lora, linear_parts
from finetune.kernels.workspace import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEW = 256
"""Rows up to which a product is arranged for its weights; above, for its rows."""

OWN = "own"
"""The adapter that peft has put into the model itself."""


class JointLayers:
    """A model's joint layers, and the adapters next to them. Rows take the model's own adapter until others are assigned."""

    def __init__(self, groups: Sequence[_Group], names: Mapping[nn.Module, str]) -> None:
        self._groups, self._names = groups, names
        self._assigned: list[str | None] = []
        self.assign([OWN])

    def load(self, name: str, adapter: Mapping[str, Adapter]) -> int:
        """Add an adapter: (path of a layer in the model: its part). Returns the bytes that it takes.

        Raises ValueError if a part fits no joint layer. Nothing is loaded then.
        """
        shapes = {self._names[one.layer]: one.shape for group in self._groups for one in group.members}
        for path, part in adapter.items():
            given = len(part.up), part.down.shape[1]
            if shapes.get(path) != given:
                raise ValueError(
                    f"{path} is {given[0]} x {given[1]} in the adapter, and by the model {shapes.get(path)}"
                )
        return sum(
            group.adapters.load(name, [adapter.get(self._names[one.layer]) for one in group.members])
            for group in self._groups
        )

    def assign(self, rows: Sequence[str | None]) -> None:
        """The rows of the next forwards take these adapters (None: the base alone); a single name holds for all rows."""
        if self._assigned == rows:
            return
        self._assigned, assigned = list(rows), AdapterRows(rows)
        for group in self._groups:
            group.rows = assigned


@contextmanager
def joint(model: PreTrainedModel, run: Callable[[], object]) -> Iterator[JointLayers]:
    """Join linear layers of `model` within the block, by the inputs that `run` (a forward of the model) gives them."""
    groups = [_Group(members) for members in _sharing_inputs(model, run)]
    before = {layer: vars(layer).get("forward") for group in groups for layer in group.layers}
    try:
        for device in {group.device for group in groups}:
            lay_out([one for one in groups if one.device == device], Workspace(device), constants_held=True)
        for group in groups:
            for number, layer in enumerate(group.layers):
                layer.forward = partial(group, number)
        yield JointLayers(groups, {module: name for name, module in model.named_modules()})
    finally:
        for layer, forward in before.items():
            if forward is None:
                vars(layer).pop("forward", None)
            else:
                layer.forward = forward


def _sharing_inputs(model: PreTrainedModel, run: Callable[[], object]) -> list[list[LinearParts]]:
    """The linear layers that `run` calls once, except the head; those that can be one product together."""
    head = model.get_output_embeddings()
    adapted: set[nn.Module] = {layer for layer in model.modules() if is_lora(layer)}
    inside = {part for layer in adapted for part in layer.modules()} - adapted
    outside = (layer for layer in model.modules() if layer is not head and layer not in inside)
    linear = {layer: parts for layer in outside if (parts := linear_parts(layer)) is not None}
    with recorded_calls(linear) as calls:
        run()
    times = [call.module for call in calls]
    groups = [
        [linear[layer] for layer in alike]
        for layers, _ in sharing_input(calls)
        for _, alike in groupby(layers, lambda layer: linear[layer].kind)
    ]
    return [group for group in groups if all(times.count(one.layer) == 1 for one in group)]


class Selected(NamedTuple):
    """The part of the loaded adapters that a forward takes."""

    down: torch.Tensor
    """A, (ranks, in)."""
    up: torch.Tensor
    """B, scaled, (out, ranks)."""
    mask: torch.Tensor | None
    """(rows, ranks); None where every row takes all."""


class AdapterRows:
    """The adapter of each row of a forward, by name; None is the base alone."""

    def __init__(self, rows: Sequence[str | None]) -> None:
        self.used = {name for name in rows if name is not None}
        self.mixed = len(set(rows)) > 1
        self._rows = rows
        self._masks: dict[tuple[object, ...], torch.Tensor] = {}

    def mask(self, owners: Sequence[str], like: torch.Tensor) -> torch.Tensor:
        """(rows, columns): 1 where the row's adapter owns the column, else 0."""
        key = (*owners, like.dtype, like.device)
        if key not in self._masks:
            numbers = {name: number for number, name in enumerate(dict.fromkeys([*owners, *self._rows]))}
            rows, columns = (torch.tensor([numbers[name] for name in names]) for names in (self._rows, owners))
            self._masks[key] = (rows[:, None] == columns).to(like)
        return self._masks[key]


class LoadedAdapters:
    """The adapters of layers that are given the same rows."""

    def __init__(self, members: Sequence[LinearParts]) -> None:
        """Load the layers' own, if they have some, as `OWN`."""
        self._members = members
        none = JointAdapters(members, [None] * len(members))
        self._down, self._up = none.down, none.up
        self._owners: list[str] = []
        self._last: tuple[AdapterRows, Selected | None] | None = None
        if any(one.adapter is not None for one in members):
            self.load(OWN, [one.adapter for one in members])

    def load(self, name: str, adapters: Sequence[Adapter | None]) -> int:
        """Add an adapter: its part for each of the layers. Returns the bytes that it takes."""
        joint = JointAdapters(self._members, adapters)
        joint.cast()
        self._down = torch.cat([self._down, joint.down])
        self._up = torch.cat([self._up, joint.up], dim=1)
        self._owners += [name] * joint.rank
        self._last = None
        return joint.down.nbytes + joint.up.nbytes

    def select(self, rows: AdapterRows) -> Selected | None:
        """The part that `rows` take; None where no row takes any."""
        if self._last is None or self._last[0] is not rows:
            self._last = rows, self._selected(rows)
        return self._last[1]

    def _selected(self, rows: AdapterRows) -> Selected | None:
        places = [index for index, owner in enumerate(self._owners) if owner in rows.used]
        if not places:
            return None
        part = slice(places[0], places[-1] + 1)
        mask = rows.mask(self._owners[part], self._down) if rows.mixed else None
        return Selected(self._down[part], self._up[:, part], mask)


class _Group(JointWeights):
    """Linear layers that are given the same tensor."""

    def __init__(self, members: Sequence[LinearParts]) -> None:
        super().__init__(members)
        self.layers = [one.layer for one in members]
        self.device = members[0].weight.device
        self.adapters = LoadedAdapters(members)
        self.rows: AdapterRows
        self._bias = self.bias()
        self._widens = min(self.outs) > self.shape[1]
        self._input: torch.Tensor | None = None
        self._results: list[torch.Tensor | None] = []

    def __call__(self, number: int, x: torch.Tensor) -> torch.Tensor:
        """The result for `x` of the layer of this number; the first that is asked computes it for all."""
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
        matrix = self.matrix()
        rows = x.reshape(-1, self.shape[1]).to(self.dtype)
        y = self._few(rows, matrix) if len(rows) <= FEW else self._many(rows, matrix)
        for part in y.split(self.outs, dim=1):
            yield part.view(*x.shape[:-1], part.shape[1])

    def _few(self, rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        # Weights first: as they lie they are the left side of a product; on its right a CPU copies them into another
        # order at each use, which for few rows takes as long as the product.
        y = torch.mm(matrix, rows.t())
        if self._bias is not None:
            y += self._bias[:, None]
        selected = self.adapters.select(self.rows)
        if selected:
            squeezed = torch.mm(selected.down, rows.t())
            y.addmm_(selected.up, squeezed if selected.mask is None else squeezed.mul_(selected.mask.t()))
        # What a layer widens goes through an activation, number by number, and is then taken as it lies by a product.
        return y.t() if self._widens else y.t().contiguous()

    def _many(self, rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        y = torch.mm(rows, matrix.t())
        if self._bias is not None:
            y += self._bias
        selected = self.adapters.select(self.rows)
        if selected:
            squeezed = torch.mm(rows, selected.down.t())
            y.addmm_(squeezed if selected.mask is None else squeezed.mul_(selected.mask), selected.up.t())
        return y
