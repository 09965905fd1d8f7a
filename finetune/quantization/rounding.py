"""The base model in four bits: its linear layers rounded to a grid of bitsandbytes, nearest or by GPTQ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune import params
from finetune.models.rounding_error import Factors, factors
from finetune.quantization import gptq
from finetune.quantization.calibration import Inputs, walk
from finetune.quantization.grid import Grid


@dataclass(frozen=True)
class Rounded:
    """A linear layer in four bits, as bitsandbytes holds it."""

    codes: torch.Tensor
    state: QuantState
    weight: torch.Tensor
    """What is read of them, (outputs, inputs)."""
    error: Factors
    """Of what rounding took from the weight."""


def rounded_nearest(module: nn.Linear | Conv1D, settings: params.Quantization) -> Rounded:
    """Each weight at the nearest of the 16 values, its block scaled by the largest (Dettmers et al. 2023, section 3)."""
    weight = matrix(module)
    codes, state = quantize_4bit(
        weight.contiguous(),
        blocksize=settings.block_size,
        compress_statistics=settings.double_quant,
        quant_type=settings.type,
    )
    alike = torch.ones(weight.shape[1], device=weight.device)
    return _rounded(weight.float(), codes, state, alike)


def rounded_by_gptq(
    model: PreTrainedModel, rows: list[list[int]], settings: params.Quantization
) -> Iterator[tuple[nn.Linear | Conv1D, Rounded]]:
    """The linear layers of `model` one after the other, calibrated on `rows` (token ids). Their weights are replaced by
    what is left of them, so that the layers after them are calibrated on what they will be given."""
    grid = Grid(settings, model.device)
    for inputs in walk(model, rows):
        for module, result in zip(inputs.modules, _together(inputs, grid), strict=True):
            module.weight.data = result.weight.t().contiguous() if isinstance(module, Conv1D) else result.weight
            yield module, result


def _together(inputs: Inputs, grid: Grid) -> list[Rounded]:
    weights = [matrix(module).float() for module in inputs.modules]
    importance = inputs.hessian.diagonal().clamp_min(1e-12)
    dtype = inputs.modules[0].weight.dtype
    read, states = zip(*(grid.stored(grid.scales(w, importance), dtype) for w in weights), strict=True)
    chosen = gptq.choose(torch.cat(weights), torch.cat(read), inputs.hessian, grid).split([len(w) for w in weights])
    return [
        _rounded(weight, grid.packed(each), state, importance.sqrt())
        for weight, each, state in zip(weights, chosen, states, strict=True)
    ]


def _rounded(weight: torch.Tensor, codes: torch.Tensor, state: QuantState, importance: torch.Tensor) -> Rounded:
    left = dequantize_4bit(codes, state)
    return Rounded(codes, state, left, factors(weight - left.float(), importance))


def matrix(module: nn.Linear | Conv1D) -> torch.Tensor:
    """The weight of `module` as (outputs, inputs)."""
    return module.weight.t() if isinstance(module, Conv1D) else module.weight
