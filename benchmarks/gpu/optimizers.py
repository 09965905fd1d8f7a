"""Optimizers on the weights of one model layer: time of a step, memory of the state, and how far from fp32's AdamW."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from finetune.device import device

from .results import Outcome

STEPS = 20
SETTINGS: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}

Optimizer = Callable[[list[torch.Tensor]], torch.optim.Optimizer]


def _fused(weights: list[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, **SETTINGS, fused=True)


def _ours(weights: list[torch.Tensor]) -> torch.optim.Optimizer:
    from finetune.kernels.adamw import SplitAdamW

    return SplitAdamW(weights, **SETTINGS)


def _paged_8_bit(weights: list[torch.Tensor]) -> torch.optim.Optimizer:
    from bitsandbytes.optim import PagedAdamW8bit

    made: torch.optim.Optimizer = PagedAdamW8bit(weights, **SETTINGS)
    return made


WAYS: dict[str, tuple[torch.dtype, Optimizer]] = {
    "AdamW, fp32": (torch.float32, _fused),
    "AdamW, bf16": (torch.bfloat16, _fused),
    "ours": (torch.bfloat16, _ours),
    "paged 8-bit AdamW": (torch.bfloat16, _paged_8_bit),
}
"""The dtype of the weights, and the optimizer."""


def measure(name: str, width: int, mlp: int) -> Outcome:
    """So many steps, with new gradients for each. The error is that of the change of the weights."""
    dtype, make = WAYS[name]
    weights = list(_weights(width, mlp))
    start, exact = ([weight.clone() for weight in weights] for _ in range(2))
    mine = [weight.to(dtype) for weight in weights]
    reference, optimizer = _fused(exact), make(mine)
    times = []
    for step in range(STEPS):
        generator = torch.Generator(device()).manual_seed(step)
        for weight, other in zip(mine, exact, strict=True):
            gradient = torch.randn(other.shape, generator=generator, device=other.device).to(torch.bfloat16)
            weight.grad, other.grad = gradient.to(weight.dtype), gradient.float()
        reference.step()
        times.append(_timed(optimizer))
    went = torch.cat([(one.float() - first).flatten() for one, first in zip(mine, start, strict=True)])
    meant = torch.cat([(one - first).flatten() for one, first in zip(exact, start, strict=True)])
    state = sum(value.nbytes for one in optimizer.state.values() for value in one.values() if torch.is_tensor(value))
    count = sum(weight.numel() for weight in weights)
    return {
        "milliseconds": round(statistics.median(times[3:]), 3),
        "bytes_per_weight": round(mine[0].itemsize + state / count, 2),
        "error": float(f"{((went - meant).norm() / meant.norm()).item():.2g}"),
    }


def _weights(width: int, mlp: int) -> Iterator[torch.Tensor]:
    """Of one layer of a Llama, as bf16 holds them, in fp32."""
    torch.manual_seed(0)
    for shape in ((width, width), (width, width), (mlp, width), (mlp, width), (width, mlp), (width,)):
        yield torch.randn(*shape, device=device()).mul_(0.02).bfloat16().float()


def _timed(optimizer: torch.optim.Optimizer) -> float:
    """Milliseconds of a step."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    optimizer.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started)
