"""RMSNorm, SiLU-gated MLPs and trained linear layers that keep less for the backward pass than the usual forms.

The output of a norm or an activation is cheap to compute again from its input, which is kept anyway. So the linear
layer behind it keeps how to recompute its input, in place of the input. Per token and layer of a Llama this leaves the
two residuals, q, k, v, the attention's result, and the two halves of the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import nn
from torch.nn.functional import linear, silu

from finetune.kernels.rms_norm import Norm, RMSNorm, normed

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Recompute:
    """How to compute a tensor again from tensors that are kept anyway: `function(*tensors)`.

    A layer that needs the tensor in its backward pass keeps `tensors`, and there calls what `for_user` returned with
    them. The result is shared by all layers that asked for it, and dropped after the last.
    """

    def __init__(self, function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> None:
        self.tensors = tensors
        # Apart, because a method of this object would hold `tensors` as well, and autograd couldn't free them.
        self._sharing = _Sharing(function)

    def for_user(self) -> Callable[..., torch.Tensor]:
        """The function that computes the tensor again, for one more user.

        It holds no tensor itself, so that autograd decides how long they live.
        """
        self._sharing.users += 1
        return self._sharing.recompute


class _Sharing:
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        self.function, self.users = function, 0
        self.made: torch.Tensor | None = None

    def recompute(self, *tensors: torch.Tensor) -> torch.Tensor:
        made = self.function(*tensors) if self.made is None else self.made
        self.users -= 1
        self.made = made if self.users else None
        return made


def attach(tensor: torch.Tensor, function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """Attach to `tensor` how it can be computed again."""
    noted: Any = tensor  # PyTorch's class declares no such attribute
    noted.recompute = Recompute(function, *(one.detach() for one in tensors))
    return tensor


class _GatedMlp(Protocol):
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module


def replace_layers(model: PreTrainedModel | PeftModel) -> None:
    """Give norms, gated MLPs and trained linear layers of `model` leaner steps, where these compute the same."""
    dtype = cast(nn.Embedding, model.get_input_embeddings()).weight.dtype
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if type(module) is nn.Linear and module.weight.requires_grad:
            cast(nn.Module, module).forward = partial(_linear, module)
        elif hasattr(module, "variance_epsilon"):
            _replace(module, _rms_norm, module.weight.shape[-1], dtype)
        elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj")):
            _replace(module, _gated_mlp, module.gate_proj.in_features, dtype)


@torch.no_grad()
def _replace(
    module: nn.Module, step: Callable[[Any, torch.Tensor], torch.Tensor], width: int, dtype: torch.dtype
) -> None:
    """Replace `module.forward` by `step` if both compute the same numbers: names don't tell, since many models share them."""
    device = next(module.parameters()).device
    probe = torch.linspace(-2, 3, 4 * width, dtype=dtype, device=device).view(1, 4, width)
    # On the meta device there are no numbers to compare, nor anything that a wrong step would spoil.
    if device.type == "meta" or torch.equal(step(module, probe), module(probe)):
        module.forward = partial(step, module)


def linear_input(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, Recompute]:
    """The rows of `x` as a matrix of `dtype`, and how a linear layer gets them again in its backward pass."""
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    recompute = getattr(x, "recompute", None)
    return rows, Recompute(lambda kept: kept, rows) if recompute is None else recompute


def _linear(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return _Linear.apply(x, module.weight, module.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows, recompute = linear_input(x, _product_dtype(weight))
        ctx.save_for_backward(weight, *recompute.tensors)
        ctx.recompute, ctx.shape, ctx.dtype, ctx.rows_dtype = recompute.for_user(), x.shape, x.dtype, rows.dtype
        y = linear(rows, weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype))
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, *kept = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1]).to(ctx.rows_dtype)
        rows = ctx.recompute(*kept).reshape(len(gradient), -1).to(ctx.rows_dtype)
        d_x = (gradient @ weight.to(ctx.rows_dtype)).view(ctx.shape).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        d_weight = (gradient.t() @ rows).to(weight.dtype)
        d_bias = gradient.sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return d_x, d_weight, d_bias


def _product_dtype(weight: torch.Tensor) -> torch.dtype:
    device = weight.device.type
    if weight.is_meta or not torch.is_autocast_enabled(device):
        return weight.dtype
    return torch.get_autocast_dtype(device)


def _rms_norm(module: Norm, x: torch.Tensor) -> torch.Tensor:
    y = RMSNorm.apply(x, module.weight, module.variance_epsilon)
    return attach(y, partial(normed, epsilon=module.variance_epsilon), x, module.weight)


def _gated_mlp(module: _GatedMlp, x: torch.Tensor) -> torch.Tensor:
    gate, up = module.gate_proj(x), module.up_proj(x)
    return module.down_proj(attach(_SiluGate.apply(gate, up), _gated, gate, up))


def _gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (SwiGLU, Shazeer 2020, equation 6)."""
    return silu(gate).mul_(up)


class _SiluGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        d_up = silu(gate).mul_(gradient)
        return torch.ops.aten.silu_backward(gradient * up, gate), d_up
