"""LoRA's linear layers as one autograd step, without the copies that the layer-by-layer form makes.

A LoRA layer (Hu et al. 2021, section 4.1) computes y = x Wᵀ + b + s (x Aᵀ) Bᵀ with W frozen and s = alpha / r. Written
as modules it holds three results as large as y and casts x on the way. Here the update is added in place, and x (or how
to make it again) and x Aᵀ are all that is kept for the backward pass:

    dB = s gᵀ (x Aᵀ)        dA = s (g B)ᵀ x        dx = g W + s (g B) A
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from finetune.kernels.layers import linear_input
from finetune.kernels.linear_parts import is_lora, plain_adapter


def fuse(model: nn.Module) -> None:
    """Give every plain LoRA layer of a peft `model` the fused step. A layer with dropout, DoRA or biases is left as it is.

    While its adapters are disabled, merged, or mixed in a batch, a fused layer does what peft does. A 4-bit base weight
    is de-quantised at each use, twice a step, and dropped at once.
    """
    layers: Iterator[Any] = model.modules()
    for layer in layers:
        if is_lora(layer) and plain_adapter(layer) is not None:
            layer.forward = partial(_forward, layer)


def _frozen_weight(base: nn.Module) -> Callable[[], torch.Tensor]:
    """A function that returns the matrix W, (out, in), of a Linear, Conv1D or 4-bit layer."""
    parameter = cast(torch.Tensor, base.weight)
    # Of a model in shards the weight is a plain tensor of bytes, and its layer knows what they mean.
    state = getattr(parameter, "quant_state", None) or getattr(base, "quant_state", None)
    if state is None:
        # Asked for at each use: generation lets the parameter be a part of a larger matrix.
        return (lambda: parameter.data.t()) if isinstance(base, Conv1D) else (lambda: parameter.data)
    from bitsandbytes.functional import dequantize_4bit

    return partial(dequantize_4bit, parameter.data, state)


def _forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    # peft names an adapter for each row where a batch mixes them.
    adapter = None if args or kwargs else plain_adapter(layer)
    if adapter is None:
        return type(layer).forward(layer, x, *args, **kwargs)
    base = layer.get_base_layer()
    return _LoraLinear.apply(x, _frozen_weight(base), base.bias, adapter.down, adapter.up, adapter.scale)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: Callable[[], torch.Tensor],
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        matrix = weight()
        rows, recompute = linear_input(x, matrix.dtype)
        # Scaled while it is r numbers wide: scaling the update instead would read a tensor as large as y.
        down, up = a.to(matrix.dtype), (b * scale).to(matrix.dtype)
        y = linear(rows, matrix, bias)
        squeezed = rows @ down.t()
        # In place, which is safe: y is new, and no backward pass keeps it. A sum would be a second tensor of its size.
        y.addmm_(squeezed, up.t())
        ctx.save_for_backward(squeezed, down, up, *recompute.tensors)
        # How to get W, not W: de-quantised at each use, it would otherwise stay until the backward pass has come here.
        ctx.weight, ctx.recompute, ctx.scale = weight, recompute.for_user(), scale
        ctx.shape, ctx.dtypes = x.shape, (x.dtype, a.dtype)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        squeezed, down, up, *kept = ctx.saved_tensors
        x_dtype, adapter_dtype = ctx.dtypes
        gradient = gradient.reshape(-1, gradient.shape[-1])
        rows = ctx.recompute(*kept).reshape(len(gradient), -1).to(gradient.dtype)
        through_up = gradient @ up
        d_a = (through_up.t() @ rows).to(adapter_dtype)
        d_b = (gradient.t() @ squeezed).to(adapter_dtype).mul_(ctx.scale)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (gradient @ ctx.weight()).addmm_(through_up, down).view(ctx.shape).to(x_dtype)
        return d_x, None, None, d_a, d_b, None
