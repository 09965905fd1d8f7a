"""Linear layers that are given the same rows, as one product, with their adapters as another.

W holds the rows of all the layers, A and B are as in `joint_adapters`. With g for the results' gradient:

    dB = s gᵀ (x Aᵀ)        dA = s (g B)ᵀ x        dx = g W + s (g B) A        or, trained whole, dW = gᵀ x
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch

from finetune.kernels.joint_adapters import JointAdapters
from finetune.kernels.linear_parts import LinearParts, adds_still, dequantizer
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
        self._adapters = JointAdapters(members)
        self.rank = self._adapters.rank

    @property
    def is_current(self) -> bool:
        """Whether the layers still add the adapters they had: peft may have disabled, merged or switched them."""
        return all(adds_still(one.layer, one.adapter) for one in self._members)

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What is trained here, in the order of `backward`'s gradients."""
        trained = self._adapters.parameters
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

    def cast_adapters(self) -> None:
        """Take the adapters over as they are now."""
        self._adapters.cast()

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
            grads += _outer(gradient, rows).split(self._outs)
        for part, bias in zip(gradient.split(self._outs, dim=1), self._biases, strict=True):
            if bias is not None and bias.requires_grad:
                grads.append(part.sum(0).to(bias.dtype))
        if d_rows is not None:
            _multiply(gradient, self._weights(), d_rows)
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


def lay_out(layers: Sequence[JointLinear]) -> None:
    """Give each of `layers` its matrix. The largest first: the block that they share in turn mustn't move later."""
    for layer in sorted(layers, key=lambda one: one.shape[0] * one.shape[1], reverse=True):
        layer.lay_out()
