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
from finetune.quantization.calibration import Inputs, walk
from finetune.quantization.grid import Grid

DAMPING = 0.01
"""GPTQ's, as a share of the Hessian's mean diagonal (Frantar et al. 2023, section 3.3, step 3)."""
_COLUMNS = 64
"""Columns that GPTQ rounds before it updates the ones after them, by one matrix product."""


@dataclass(frozen=True)
class Rounded:
    """A linear layer in four bits, as bitsandbytes holds it."""

    codes: torch.Tensor
    state: QuantState
    weight: torch.Tensor
    """The weight that they stand for, (outputs, inputs)."""
    error: Factors
    """The rounding error of the weight, of low rank."""


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
    """The linear layers of `model` one after the other, calibrated on `rows` (token ids).

    Each gets its rounded weight, so that the layers after it are calibrated on the inputs that they will be given.
    """
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
    chosen = _gptq(torch.cat(weights), torch.cat(read), inputs.hessian, grid).split([len(w) for w in weights])
    return [
        _rounded(weight, grid.packed(each), state, importance.sqrt())
        for weight, each, state in zip(weights, chosen, states, strict=True)
    ]


def _gptq(weight: torch.Tensor, scales: torch.Tensor, hessian: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The index among `grid.values` for each weight, so that the layer's outputs, not its weights, are kept.

    GPTQ (Frantar et al. 2023, algorithm 1): the columns that aren't rounded yet make up for each column's rounding error.
    weight: (rows, columns), fp32; scales: (rows, blocks); hessian: (columns, columns), the mean of x xT over the
    layer's inputs. Columns whose inputs are large come first, while there are others to make up for them.
    """
    order = hessian.diagonal().argsort(descending=True)
    scale = scales.repeat_interleave(grid.settings.block_size, 1)[:, order]
    chosen = _in_order(weight[:, order], scale, _inverse_factor(hessian[order][:, order]), grid)
    return chosen[:, order.argsort()]


def _inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse."""
    damped = hessian.clone()
    damped.diagonal().add_(DAMPING * hessian.diagonal().mean())
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


def _in_order(weight: torch.Tensor, scale: torch.Tensor, factor: torch.Tensor, grid: Grid) -> torch.Tensor:
    left = weight.t().contiguous()  # a column is then one piece of memory
    scale = scale.t().contiguous()
    chosen = torch.empty(left.shape, dtype=torch.int64, device=left.device)
    for start in range(0, len(left), _COLUMNS):
        end = min(start + _COLUMNS, len(left))
        part, errors, local = left[start:end], torch.empty_like(left[start:end]), factor[start:end, start:end]
        for column in range(end - start):
            chosen[start + column] = grid.nearest(part[column] / scale[start + column])
            rounded = grid.values[chosen[start + column]] * scale[start + column]
            errors[column] = (part[column] - rounded) / local[column, column]
            part[column + 1 :].addr_(local[column, column + 1 :], errors[column], alpha=-1)
        left[end:].addmm_(factor[start:end, end:].t(), errors, alpha=-1)
    return chosen.t()


def _rounded(weight: torch.Tensor, codes: torch.Tensor, state: QuantState, importance: torch.Tensor) -> Rounded:
    left = dequantize_4bit(codes, state)
    return Rounded(codes, state, left, factors(weight - left.float(), importance))


def matrix(module: nn.Linear | Conv1D) -> torch.Tensor:
    """The weight of `module` as (outputs, inputs)."""
    return module.weight.t() if isinstance(module, Conv1D) else module.weight
