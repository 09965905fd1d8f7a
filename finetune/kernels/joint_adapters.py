"""The LoRA adapters of linear layers that are given the same rows, as two matrices.

A layer computes y = x Wᵀ + b + s (x Aᵀ) Bᵀ with s = alpha / r (Hu et al. 2021, section 4.1). Here `down` holds the rows
of all A, and `up` the s B as blocks along its diagonal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch

from finetune.kernels.linear_parts import Adapter, LinearParts


class JointAdapters:
    """`down` (rank of all, in) and `up` (out of all, rank of all), in the products' dtype, as last cast."""

    def __init__(self, members: Sequence[LinearParts], adapters: Sequence[Adapter | None] | None = None) -> None:
        """Of `members`' own adapters, or of others, one for each; some may have none."""
        own = [one.adapter for one in members] if adapters is None else adapters
        ranks = slices(0 if one is None else len(one.down) for one in own)
        outs = slices(one.shape[0] for one in members)
        self._placed = [(one, rank, out) for one, rank, out in zip(own, ranks, outs, strict=True) if one is not None]
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
        """What is trained: A and B of each layer in turn."""
        return [part for one, _, _ in self._placed for part in (one.down, one.up)]

    def gradients(self, d_down: torch.Tensor, d_up: torch.Tensor) -> list[torch.Tensor]:
        """Those of `parameters`, given those of x Aᵀ's A and of the unscaled B, each of all layers in one matrix."""
        grads = []
        for one, ranks, outs in self._placed:
            grads.append(d_down[ranks].to(one.down.dtype))
            grads.append(d_up[outs, ranks].to(one.up.dtype).mul_(one.scale))
        return grads


def slices(sizes: Iterable[int]) -> list[slice]:
    """Where parts of these `sizes` lie, one behind the other."""
    ends = list(accumulate(sizes))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
