"""RMSNorm into given memory, forward and backward."""

from __future__ import annotations

from typing import Protocol

import torch

from finetune.kernels.workspace import Workspace


class Norm(Protocol):
    """What transformers' RMSNorms have."""

    weight: torch.nn.Parameter
    variance_epsilon: float


class RMSNorm:
    """x / rms(x) * weight over the last dimension (Zhang & Sennrich 2019, equation 4), in fp32 like transformers'."""

    def __init__(self, module: Norm, workspace: Workspace) -> None:
        self.weight, self._epsilon = module.weight, module.variance_epsilon
        self._workspace = workspace

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The result for `x` (rows, width), which lasts until the next norm, and 1 / rms(x), (rows, 1), fp32."""
        wide = self._wide("x", x)
        # fp32, because one number scales a whole row.
        reciprocal = torch.linalg.vector_norm(wide, dim=1, keepdim=True).square_()
        reciprocal.div_(x.shape[1]).add_(self._epsilon).rsqrt_()
        return self._scaled(wide.mul_(reciprocal), x.dtype), reciprocal

    def again(self, x: torch.Tensor, reciprocal: torch.Tensor) -> torch.Tensor:
        """The result once more; leaves in the workspace what `backward` wants."""
        return self._scaled(self._wide("x", x).mul_(reciprocal), x.dtype)

    def backward(
        self, gradient: torch.Tensor, reciprocal: torch.Tensor, through: torch.Tensor, out: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Write `through` + the gradient of the x that `again` was called with into `out`; give the weight's, if trained."""
        rows, width = gradient.shape
        normed = self._workspace.rows("norm x", rows, width, dtype=torch.float32)
        grads = []
        if self.weight.requires_grad:
            grads.append((gradient * normed).sum(0).to(self.weight.dtype))
        if out is not None:
            d_normed = self._wide("gradient", gradient).mul_(self.weight.detach())
            product = self._workspace.rows("norm product", rows, width, dtype=torch.float32)
            along = torch.mul(d_normed, normed, out=product).mean(1, keepdim=True)
            out.copy_(d_normed.addcmul_(normed, along, value=-1).mul_(reciprocal)).add_(through)
        return grads

    def _wide(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self._workspace.rows(f"norm {name}", *x.shape, dtype=torch.float32).copy_(x)

    def _scaled(self, normed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        out = self._workspace.rows("normed", *normed.shape, dtype=dtype)
        return out.copy_(normed).mul_(self.weight.detach())
