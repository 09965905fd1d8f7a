"""GPTQ (Frantar et al. 2023, algorithm 1): each column's rounding error is made up for by the columns not yet rounded."""

from __future__ import annotations

import torch

from finetune.quantization.grid import Grid

DAMPING = 0.01
"""Of the Hessian's mean diagonal (section 3.3, step 3)."""
_COLUMNS = 64
"""Rounded before the columns after them hear of it: one matrix product for so many."""


def choose(weight: torch.Tensor, scales: torch.Tensor, hessian: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The index among `grid.values` for each weight, so that the layer's outputs, not its weights, are kept.

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
