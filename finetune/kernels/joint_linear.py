"""Linear layers that are given the same rows, as one product, with their LoRA adapters as two more.

W holds the rows of all the layers. A layer with an adapter computes y = x Wᵀ + b + s (x Aᵀ) Bᵀ with s = alpha / r (Hu et
al. 2021, section 4.1). With g for the results' gradient:

    dB = s gᵀ (x Aᵀ)        dA = s (g B)ᵀ x        dx = g W + s (g B) A        or, trained whole, dW = gᵀ x
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import cast

import torch
from transformers.pytorch_utils import Conv1D

from finetune.kernels.linear_parts import Adapter, LinearParts, adds_still, dequantizer
from finetune.kernels.workspace import Workspace

ROWS = 512
"""Rows of a product at most: for each number of rows oneDNN compiles a kernel of its own, and keeps it."""


class JointAdapters:
    """The adapters of several layers: `down` (rank of all, in) holds the rows of every A, and `up` (out of all, rank of
    all) every s B as blocks along its diagonal, both in the products' dtype as last cast."""

    def __init__(self, members: Sequence[LinearParts], adapters: Sequence[Adapter | None]) -> None:
        """`adapters` has one for each of `members`, or None for a layer without."""
        ranks = _slices(0 if one is None else len(one.down) for one in adapters)
        outs = _slices(one.shape[0] for one in members)
        self._placed = [
            (one, rank, out) for one, rank, out in zip(adapters, ranks, outs, strict=True) if one is not None
        ]
        self.rank = sum(len(one.down) for one, _, _ in self._placed)
        dtype, device = members[0].dtype, members[0].weight.device
        self.down = torch.zeros(self.rank, members[0].shape[1], dtype=dtype, device=device)
        self.up = torch.zeros(sum(one.shape[0] for one in members), self.rank, dtype=dtype, device=device)

    def cast(self) -> None:
        """Take the adapters over as they are now."""
        for one, ranks, outs in self._placed:
            self.down[ranks] = one.down.detach()
            self.up[outs, ranks] = one.up.detach() * one.scale

    @property
    def parameters(self) -> list[torch.Tensor]:
        """The trained parameters: A and B of each layer in turn."""
        return [part for one, _, _ in self._placed for part in (one.down, one.up)]

    def gradients(self, d_down: torch.Tensor, d_up: torch.Tensor) -> list[torch.Tensor]:
        """Those of `parameters`, given those of A and of the unscaled B, each of all layers in one matrix."""
        grads = []
        for one, ranks, outs in self._placed:
            grads.append(d_down[ranks].to(one.down.dtype))
            grads.append(d_up[outs, ranks].to(one.up.dtype).mul_(one.scale))
        return grads


class JointWeights:
    """The weights and biases of layers of one input, for training and for answering."""

    def __init__(self, members: Sequence[LinearParts]) -> None:
        self.members = members
        self.outs = [one.shape[0] for one in members]
        self.shape = sum(self.outs), members[0].shape[1]
        self.dtype = members[0].dtype
        self.quantized = members[0].state is not None
        self.biases = [cast("torch.Tensor | None", getattr(one.base, "bias", None)) for one in members]
        self._matrix: torch.Tensor

    def lay_out(self, workspace: Workspace, *, constants_held: bool) -> None:
        """Make one matrix: the layers' own weights become parts of it, or 4-bit blocks will be de-quantised into it.

        `constants_held` is as in `dequantizer`.
        """
        first = self.members[0]
        if self.quantized:
            self._matrix = workspace.matrix(("weights in 16 bits", self.dtype), *self.shape, dtype=self.dtype)
            parts = self._matrix.split(self.outs)
            self._fill = [
                dequantizer(one, part, constants_held=constants_held)
                for one, part in zip(self.members, parts, strict=True)
            ]
            return
        if len(self.members) == 1:
            self._matrix = first.weight.data.t() if isinstance(first.base, Conv1D) else first.weight.data
            return
        self._matrix = torch.empty(self.shape, dtype=self.dtype, device=first.weight.device)
        for one, part in zip(self.members, self._matrix.split(self.outs), strict=True):
            # The layer's own weight is now a part of the matrix, so that it isn't held twice.
            part = part.t() if isinstance(one.base, Conv1D) else part
            one.weight.data = part.copy_(one.weight.data)

    def matrix(self) -> torch.Tensor:
        """W, (out of all, in); of 4-bit layers it lasts until the next one is asked for."""
        if self.quantized:
            for fill in self._fill:
                fill()
        return self._matrix

    def bias(self) -> torch.Tensor | None:
        """b, (out of all), with zeros for layers that have none; None if no layer has one."""
        if all(bias is None for bias in self.biases):
            return None
        like = next(bias for bias in self.biases if bias is not None)
        each = [
            like.new_zeros(out) if bias is None else bias.detach()
            for out, bias in zip(self.outs, self.biases, strict=True)
        ]
        return torch.cat(each).to(self.dtype)


class JointLinear(JointWeights):
    """Layers of one input, (rows, in), as they are trained; their results lie next to each other: (rows, out of all)."""

    def __init__(self, members: Sequence[LinearParts]) -> None:
        super().__init__(members)
        self._trained = members[0].weight.requires_grad
        self._adapters = JointAdapters(members, [one.adapter for one in members])
        self.rank = self._adapters.rank

    @property
    def is_current(self) -> bool:
        """Whether the layers still add the adapters they had: peft may have disabled, merged or switched them."""
        return all(adds_still(one.layer, one.adapter) for one in self.members)

    @property
    def parameters(self) -> list[torch.Tensor]:
        """The trained parameters, in the order of `backward`'s gradients."""
        trained = self._adapters.parameters
        if self._trained:
            trained += [one.weight for one in self.members]
        return trained + [bias for bias in self.biases if bias is not None and bias.requires_grad]

    def cast_adapters(self) -> None:
        """Take the adapters over as they are now."""
        self._adapters.cast()

    def forward(self, rows: torch.Tensor, out: torch.Tensor, squeezed: torch.Tensor) -> None:
        """Write the results for `rows` into `out`, and x Aᵀ, which `backward` wants, into `squeezed` (rows, rank)."""
        _multiply(rows, self.matrix().t(), out)
        bias = self.bias()
        if bias is not None:
            out.add_(bias)
        if self.rank:
            _multiply(rows, self._adapters.down.t(), squeezed)
            _add_product(squeezed, self._adapters.up.t(), out)

    def backward(
        self, gradient: torch.Tensor, rows: torch.Tensor, squeezed: torch.Tensor, d_rows: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Gradients of `parameters`; that of the rows goes into `d_rows`, unless that is None."""
        grads: list[torch.Tensor] = []
        through = _multiply(gradient, self._adapters.up, torch.empty_like(squeezed)) if self.rank else None
        if through is not None:
            grads += self._adapters.gradients(_outer(through, rows), _outer(gradient, squeezed))
        if self._trained:
            grads += _outer(gradient, rows).split(self.outs)
        for part, bias in zip(gradient.split(self.outs, dim=1), self.biases, strict=True):
            if bias is not None and bias.requires_grad:
                grads.append(part.sum(0).to(bias.dtype))
        if d_rows is not None:
            _multiply(gradient, self.matrix(), d_rows)
            if through is not None:
                _add_product(through, self._adapters.down, d_rows)
        return grads


def _multiply(rows: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    for some, into in _chunks(rows, out):
        torch.mm(some, matrix, out=into)
    return out


def _add_product(rows: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor) -> None:
    for some, into in _chunks(rows, out):
        into.addmm_(some, matrix)


def _outer(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """leftᵀ right, for matrices of as many rows."""
    (first, other), *rest = _chunks(left, right)
    total = first.t() @ other
    for one, other in rest:
        total.addmm_(one.t(), other)
    return total


def _chunks(one: torch.Tensor, other: torch.Tensor) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    if len(one) <= ROWS:
        return [(one, other)]
    return zip(one.split(ROWS), other.split(ROWS), strict=True)


def _slices(sizes: Iterable[int]) -> list[slice]:
    """Where parts of these `sizes` lie, one behind the other."""
    ends = list(accumulate(sizes))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def lay_out(layers: Sequence[JointWeights], workspace: Workspace, *, constants_held: bool) -> None:
    """Give each of `layers` its matrix. The largest first: the block that they share in turn mustn't move later."""
    for layer in sorted(layers, key=lambda one: one.shape[0] * one.shape[1], reverse=True):
        layer.lay_out(workspace, constants_held=constants_held)
