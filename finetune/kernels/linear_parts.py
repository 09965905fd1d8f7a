"""A linear layer's parts, whoever made it: weights in 16 or 4 bits, bias, adapter."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class LinearParts:
    """A layer's parts: y = x Wᵀ + bias, and the adapter's s (x Aᵀ) Bᵀ."""

    layer: nn.Module
    base: nn.Module
    weight: nn.Parameter
    down: torch.Tensor | None = None
    """A, (rank, in), as it is trained."""
    up: torch.Tensor | None = None
    """B, (out, rank)."""
    scale: float = 1.0

    @property
    def state(self) -> Any:
        return getattr(self.weight, "quant_state", None)

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype if self.state is None else self.state.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        out, width = self.weight.shape if self.state is None else self.state.shape
        return (width, out) if isinstance(self.base, Conv1D) else (out, width)

    @property
    def kind(self) -> tuple[object, ...]:
        """What layers of one product have in common."""
        return self.weight.device, self.dtype, self.shape[1], self.state is None


def linear_parts(layer: nn.Module) -> LinearParts | None:
    """The parts of a linear layer; None if it is none, or one whose form only its own code knows."""
    base, adapter = layer, {}
    if isinstance(layer, LoraLayer):
        if "forward" not in vars(layer):  # not fused: dropout, DoRA, biases
            return None
        (name,) = layer.active_adapters
        base = layer.get_base_layer()
        adapter = {
            "down": layer.lora_A[name].weight,
            "up": layer.lora_B[name].weight,
            "scale": layer.scaling[name],
        }
    weight = getattr(base, "weight", None)
    state = getattr(weight, "quant_state", None)
    # On a CPU bitsandbytes may have put the blocks in an order of its own.
    if getattr(state, "packing_format_for_cpu", False) or (state is None and type(base) not in (nn.Linear, Conv1D)):
        return None
    return LinearParts(layer, base, cast(nn.Parameter, weight), **adapter)


def dequantizer(one: LinearParts, out: torch.Tensor, *, constants_held: bool) -> Callable[[], object]:
    """What writes the weights of a 4-bit layer into `out`, a contiguous matrix.

    The blocks' constants are quantised as well. Held in fp32, they take a fourteenth more than the 4 bits, and save a
    pass over them at each use.
    """
    from bitsandbytes.functional import dequantize_blockwise

    state, packed = one.state, one.weight.data

    def constants() -> torch.Tensor:
        nested = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
        return nested.float()

    held = constants() if constants_held else None
    write = _writer(state, packed, out)
    return lambda: write(constants() if held is None else held)


def _writer(state: Any, packed: torch.Tensor, out: torch.Tensor) -> Callable[[torch.Tensor], object]:
    """What writes the weights into `out`, given the blocks' constants in fp32."""
    settings = state.blocksize, state.quant_type, state.shape, state.dtype
    if packed.is_cuda:
        return lambda absmax: torch.ops.bitsandbytes.dequantize_4bit.out(packed, absmax, *settings, out=out)
    native = _native(state)
    if native is None:
        return lambda absmax: out.copy_(torch.ops.bitsandbytes.dequantize_4bit.default(packed, absmax, *settings))
    columns = state.shape[-1]
    sizes = [ctypes.c_longlong(number) for number in (state.blocksize, prod(state.shape) // columns, columns)]
    source, target = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (packed, out))

    def write(absmax: torch.Tensor, held: tuple[torch.Tensor, ...] = (packed, out)) -> None:
        native(source, ctypes.c_void_p(absmax.data_ptr()), target, *sizes)

    return write


_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def _native(state: Any) -> Callable[..., None] | None:
    """bitsandbytes' C function, which its operator for CPUs calls on a tensor that is new each time; None if it has none."""
    from bitsandbytes.cextension import lib

    if state.blocksize >= 2048 or state.shape[-1] % 2:  # as the operator has it
        return None
    return getattr(lib._lib, f"cdequantize_blockwise_cpu_{state.quant_type}_{_NAMES[state.dtype]}", None)
