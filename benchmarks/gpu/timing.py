"""One kernel's time, memory and error, forward and backward, and that of others on the same tensors."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from .results import Outcome

Step = Callable[..., torch.Tensor]
"""Of the tensors that it is given; returns one tensor."""

WARM_UP, ROUNDS = 3, 20


def measured(step: Step, given: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> Outcome:
    """Median milliseconds of `step` with its backward pass, its peak memory above `given`, and its error.

    The error is the largest of result and gradients: the length of the difference as a share of the length of
    `reference`, which `exact` gives.
    """
    cuda = given[0].is_cuda
    found = run(step, given)
    error = max(map(_difference, found, reference))
    gradient = _seeded(found[0])
    del found
    times, peak = [], 0
    for number in range(WARM_UP + (ROUNDS if cuda else 1)):
        leaves = _leaves(given)
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if cuda else 0
        started = time.perf_counter()
        step(*leaves).backward(gradient)
        if cuda:
            torch.cuda.synchronize()
            peak = max(peak, torch.cuda.max_memory_allocated() - before)
        if number >= WARM_UP:
            times.append(1000 * (time.perf_counter() - started))
    memory = {"peak_gb": round(peak / 1e9, 4)} if cuda else {}
    return {"milliseconds": round(statistics.median(times), 3), "error": float(f"{error:.2g}")} | memory


def run(step: Step, given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The result, and the gradient of every tensor of `given` that wants one, for a result's gradient that is seeded."""
    leaves = _leaves(given)
    result = step(*leaves)
    result.backward(_seeded(result))
    return [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def exact(step: Step, given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What `run` gives in fp32."""
    wide = [t.detach().float().requires_grad_(t.requires_grad) if t.is_floating_point() else t for t in given]
    return run(step, wide)


def _leaves(given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies, because a kernel may write gradients where its inputs were."""
    return [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in given]


def _seeded(like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator(like.device).manual_seed(1)
    if like.ndim == 0:
        return torch.ones_like(like)
    return torch.randn(like.shape, generator=generator, device=like.device).to(like.dtype)


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-30)).item()
