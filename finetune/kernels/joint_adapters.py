"""The LoRA adapters of linear layers that are given the same rows, as two matrices.

A layer computes y = x Wᵀ + b + s (x Aᵀ) Bᵀ with s = alpha / r (Hu et al. 2021, section 4.1). Here `down` holds the rows
of all A, and `up` the s B as blocks along its diagonal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from finetune.kernels.linear_parts import LinearParts


class Adapter(NamedTuple):
    """One layer's adapter, and where it lies among all."""

    down: torch.Tensor
    """A, (rank, in), as it is trained."""
    up: torch.Tensor
    """B, (out, rank)."""
    scale: float
    ranks: slice
    outs: slice


class JointAdapters:
    """`down` (rank of all, in) and `up` (out of all, rank of all), in the products' dtype, as last cast."""

    def __init__(self, members: Sequence[LinearParts]) -> None:
        """Of `members`, of which some may have none."""
        dtype, device = members[0].dtype, members[0].weight.device
        self._adapters = list(_adapters(members))
        self.rank = sum(len(one.down) for one in self._adapters)
        outs, width = sum(one.shape[0] for one in members), members[0].shape[1]
        self.down = torch.zeros(self.rank, width, dtype=dtype, device=device)
        self.up = torch.zeros(outs, self.rank, dtype=dtype, device=device)

    def cast(self) -> None:
        """Take the adapters over as they are now."""
        for one in self._adapters:
            self.down[one.ranks] = one.down.detach()
            self.up[one.outs, one.ranks] = one.up.detach() * one.scale

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What is trained: A and B of each layer in turn."""
        return [part for one in self._adapters for part in (one.down, one.up)]

    def gradients(self, d_down: torch.Tensor, d_up: torch.Tensor) -> list[torch.Tensor]:
        """Those of `parameters`, given those of x Aᵀ's A and of the unscaled B, each of all layers in one matrix."""
        grads = []
        for one in self._adapters:
            grads.append(d_down[one.ranks].to(one.down.dtype))
            grads.append(d_up[one.outs, one.ranks].to(one.up.dtype).mul_(one.scale))
        return grads


def _adapters(members: Sequence[LinearParts]) -> Iterator[Adapter]:
    ranks = slices(0 if one.down is None else len(one.down) for one in members)
    outs = slices(one.shape[0] for one in members)
    for one, rank, out in zip(members, ranks, outs, strict=True):
        if one.down is not None and one.up is not None:
            yield Adapter(one.down, one.up, one.scale, rank, out)


def slices(sizes: Iterable[int]) -> list[slice]:
    """Where parts of these `sizes` lie, one behind the other."""
    ends = list(accumulate(sizes))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
