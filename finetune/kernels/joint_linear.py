"""Linear layers that are given the same rows, as one product, with their adapters as another.

A LoRA layer (Hu et al. 2021, section 4.1) computes y = x Wᵀ + b + s (x Aᵀ) Bᵀ with W frozen and s = alpha / r. Here W
and A hold the rows of all the layers, and B their blocks along its diagonal:

    dB = s gᵀ (x Aᵀ)        dA = s (g B)ᵀ x        dx = g W + s (g B) A        or, trained whole, dW = gᵀ x
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import cast

import torch

from finetune.kernels.linear_parts import LinearParts, dequantizer
from finetune.kernels.workspace import Workspace

ROWS = 512
"""Rows of a product at most: for each number of rows oneDNN compiles a kernel of its own, and keeps it."""


class JointLinear:
    """Layers of one input, (rows, in), whose results lie beside each other: (rows, out of all)."""

    def __init__(self, members: Sequence[LinearParts], workspace: Workspace) -> None:
        self._members = members
        self._outs = [one.shape[0] for one in members]
        self.shape = sum(self._outs), members[0].shape[1]
        self.dtype = members[0].dtype
        self._quantized = members[0].state is not None
        self._trained = members[0].weight.requires_grad
        self._workspace = workspace
        self._matrix: torch.Tensor
        self._biases = [cast("torch.Tensor | None", getattr(one.base, "bias", None)) for one in members]
        self._lay_out_adapters()

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What is trained here, in the order of `backward`'s gradients."""
        trained = [part for one in self._members for part in (one.down, one.up) if part is not None]
        if self._trained:
            trained += [one.weight for one in self._members]
        return trained + [bias for bias in self._biases if bias is not None and bias.requires_grad]

    def lay_out(self) -> None:
        """One matrix for all: the layers' own weights become parts of it, or 4-bit blocks are to be de-quantised into it."""
        first = self._members[0]
        if self._quantized:
            self._matrix = self._workspace.matrix("weights in 16 bits", *self.shape, dtype=self.dtype)
            parts = self._matrix.split(self._outs)
            # Constants in 8 bits until they are used: in fp32 they are a fourteenth of what QLoRA holds.
            self._fill = [
                dequantizer(one, part, constants_held=False) for one, part in zip(self._members, parts, strict=True)
            ]
        elif len(self._members) == 1:
            self._matrix = first.weight.data
        else:
            self._matrix = torch.cat([one.weight.data for one in self._members])
            for one, part in zip(self._members, self._matrix.split(self._outs), strict=True):
                one.weight.data = part

    def _lay_out_adapters(self) -> None:
        ranks = [0 if one.down is None else len(one.down) for one in self._members]
        places = zip(self._members, _slices(ranks), _slices(self._outs), strict=True)
        self._adapted = [place for place in places if place[0].down is not None]
        self.rank = sum(ranks)
        device = self._members[0].weight.device
        self._down = torch.zeros(self.rank, self.shape[1], dtype=self.dtype, device=device)
        self._up = torch.zeros(self.shape[0], self.rank, dtype=self.dtype, device=device)

    def cast_adapters(self) -> None:
        """Take the adapters over as they are now, in the products' dtype and B scaled."""
        for one, ranks, outs in self._adapted:
            self._down[ranks] = cast(torch.Tensor, one.down).detach()
            self._up[outs, ranks] = cast(torch.Tensor, one.up).detach() * one.scale

    def _weights(self) -> torch.Tensor:
        if self._quantized:
            for fill in self._fill:
                fill()
        return self._matrix

    def forward(self, rows: torch.Tensor, out: torch.Tensor, squeezed: torch.Tensor) -> None:
        """Write the results for `rows` into `out`, and x Aᵀ, which `backward` wants, into `squeezed` (rows, rank)."""
        _multiply(rows, self._weights().t(), out)
        for part, bias in zip(out.split(self._outs, dim=1), self._biases, strict=True):
            if bias is not None:
                part.add_(bias.detach())
        if self.rank:
            _multiply(rows, self._down.t(), squeezed)
            _add_product(squeezed, self._up.t(), out)

    @property
    def learns(self) -> bool:
        """Whether gradients of anything here are wanted."""
        return bool(self.rank) or self._trained

    def backward(
        self, gradient: torch.Tensor, rows: torch.Tensor | None, squeezed: torch.Tensor, d_rows: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Gradients of `parameters`; that of the rows goes into `d_rows`, unless that is None.

        `rows` may be None if nothing here `learns`.
        """
        grads: list[torch.Tensor] = []
        through = _multiply(gradient, self._up, torch.empty_like(squeezed)) if self.rank else None
        if through is not None:
            d_down, d_up = _outer(through, cast(torch.Tensor, rows)), _outer(gradient, squeezed)
            for one, ranks, outs in self._adapted:
                down, up = cast(torch.Tensor, one.down), cast(torch.Tensor, one.up)
                grads.append(d_down[ranks].to(down.dtype))
                grads.append(d_up[outs, ranks].to(up.dtype).mul_(one.scale))
        if self._trained:
            grads += _outer(gradient, cast(torch.Tensor, rows)).split(self._outs)
        for part, bias in zip(gradient.split(self._outs, dim=1), self._biases, strict=True):
            if bias is not None and bias.requires_grad:
                grads.append(part.sum(0).to(bias.dtype))
        if d_rows is not None:
            _multiply(gradient, self._weights(), d_rows)
            if through is not None:
                _add_product(through, self._down, d_rows)
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
    ends = list(accumulate(sizes))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def lay_out(layers: Sequence[JointLinear], workspace: Workspace) -> None:
    """Give each of `layers` its matrix. The largest first: the block that they share in turn mustn't move later."""
    for layer in sorted(layers, key=lambda one: one.shape[0] * one.shape[1], reverse=True):
        layer.lay_out()
