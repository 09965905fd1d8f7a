"""RMSNorm, x / rms(x) * weight over the last dimension (Zhang & Sennrich 2019, equation 4), in fp32 like transformers'.

Twice, since neither can do both: `RMSNorm` equals transformers' to the bit and replaces it anywhere; a decoder layer's
step has `RMSNormStep`, which writes into given memory and goes over it less often, with sums in another order.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from finetune.kernels.workspace import Workspace


class Norm(Protocol):
    """The attributes of transformers' RMSNorms."""

    weight: torch.nn.Parameter
    variance_epsilon: float


def normed(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x / rms(x) * weight, in the dtype of x."""
    return weight * (x.float() * _reciprocal_rms(x, epsilon)).to(x.dtype)


def _reciprocal_rms(x: torch.Tensor, epsilon: float) -> torch.Tensor:
    # fp32, because one number scales a whole row; and transformers' norms do so, which ours have to equal to the bit.
    # A copy even of fp32, since the square takes its place.
    return x.to(torch.float32, copy=True).square_().mean(-1, keepdim=True).add_(epsilon).rsqrt_()


class RMSNorm(torch.autograd.Function):
    """`normed`, of which x alone is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        return normed(x, weight, epsilon)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        scale = _reciprocal_rms(x, ctx.epsilon)
        normalised = x.float().mul_(scale)
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (gradient * normalised).flatten(0, -2).sum(0).to(weight.dtype)
        d_normed = (gradient * weight).float()
        along = (d_normed * normalised).mean(-1, keepdim=True)
        d_x = d_normed.sub_(normalised.mul_(along)).mul_(scale).to(x.dtype)
        return d_x, d_weight, None


class RMSNormStep:
    """The norm of a decoder layer's step, in blocks of a workspace."""

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
        """Compute the result again, and leave in the workspace what `backward` needs."""
        return self._scaled(self._wide("x", x).mul_(reciprocal), x.dtype)

    def backward(
        self, gradient: torch.Tensor, reciprocal: torch.Tensor, through: torch.Tensor, out: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Write `through` + the gradient of the x that `again` was called with into `out`; returns the weight's, if trained."""
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
