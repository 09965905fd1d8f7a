"""The parts of a linear layer of torch, transformers, bitsandbytes or peft: weights in 16 or 4 bits, bias, adapter."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Adapter:
    """The LoRA update of a layer: it adds scale (x downᵀ) upᵀ to the results."""

    down: torch.Tensor
    """A, (rank, in), as it is trained."""
    up: torch.Tensor
    """B, (out, rank)."""
    scale: float


@dataclass(frozen=True)
class LinearParts:
    """A layer's parts: y = x Wᵀ + bias, and what the adapter adds."""

    layer: nn.Module
    base: nn.Module
    weight: nn.Parameter
    adapter: Adapter | None = None

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
    base: Any = layer
    adapter = None
    if is_lora(layer):
        base, adapter = base.get_base_layer(), plain_adapter(layer)
        if adapter is None:
            return None
    weight = getattr(base, "weight", None)
    state = getattr(weight, "quant_state", None)
    # On a CPU bitsandbytes may have reordered the blocks.
    if getattr(state, "packing_format_for_cpu", False) or (state is None and type(base) not in (nn.Linear, Conv1D)):
        return None
    return LinearParts(layer, base, cast(nn.Parameter, weight), adapter)


def is_lora(layer: nn.Module) -> bool:
    """Whether peft has put adapters on the layer."""
    # Where nobody has imported peft, no model has its layers; its import takes a second.
    lora = sys.modules.get("peft.tuners.lora")
    return lora is not None and isinstance(layer, lora.LoraLayer)


def plain_adapter(layer: Any) -> Adapter | None:
    """The one adapter that a layer of peft's adds; None if it does anything else now.

    That is: adapters disabled, merged or several, dropout, DoRA, biases, several experts' matrices in one tensor.
    """
    names = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(names) != 1 or hasattr(layer, "parameter_name"):
        return None
    (name,) = names
    if (
        name not in layer.lora_A
        or not isinstance(layer.lora_dropout[name], nn.Identity)
        or layer.use_dora[name]
        or layer.lora_bias[name]
    ):
        return None
    return Adapter(layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])


def adds_still(layer: nn.Module, adapter: Adapter | None) -> bool:
    """Whether the layer still adds `adapter` (None: nothing) to its base's results."""
    if adapter is None or not is_lora(layer):
        return not is_lora(layer)
    now = plain_adapter(layer)
    return now is not None and now.down is adapter.down and now.up is adapter.up and now.scale == adapter.scale


def dequantizer(one: LinearParts, out: torch.Tensor, *, constants_held: bool) -> Callable[[], object]:
    """A function that writes the weights of a 4-bit layer into `out`, a contiguous matrix.

    The blocks' constants are quantised as well. Held in fp32, they take a fourteenth more than the 4 bits, and save
    their de-quantisation at each use.
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
    """A function that writes the weights into `out`, given the blocks' constants in fp32."""
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
