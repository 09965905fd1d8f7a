"""Logits a few rows at a time, in memory that is made once, and what each costs against its target.

The logits of a batch are the largest tensor of a small model's step: batch x length x vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch.nn.functional import pad

from finetune.kernels.attention import ROUND_ROWS_TO

WIDE_BYTES = 4 * 2**20
"""Logits in fp32 at a time on a CPU: what many passes go over stays in the cache. On CUDA a launch costs more than that."""


def rounded_up(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`hidden` (rows, width) in `dtype`, with rows of zeros up to a multiple of `ROUND_ROWS_TO`."""
    return pad(hidden.to(dtype), (0, 0, 0, -len(hidden) % ROUND_ROWS_TO))


def chunks(
    hidden: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None, *, size: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """The logits of `hidden` (rows, width) under a head (words, width), `size` bytes at a time at most.

    Yields the first row of each chunk, and its logits (rows, words), which last until the next.
    """
    most = max(1, size // (hidden.itemsize * len(matrix) * ROUND_ROWS_TO)) * ROUND_ROWS_TO
    memory = _memory(most, len(matrix), hidden.dtype, hidden.device)
    for start in range(0, len(hidden), most):
        part = hidden[start : start + most]
        logits = torch.mm(part, matrix.t(), out=memory[: len(part)])
        if bias is not None:
            logits += bias.to(logits.dtype)
        yield start, logits


def nats(logits: torch.Tensor, targets: torch.Tensor, *, to_gradient: bool) -> torch.Tensor:
    """Cross-entropy of each row of `logits` (rows, words) with `targets` (rows, 1): (rows, 1), in fp32.

    The logits become the gradient of its sum, if that is wanted, in their own memory and dtype.
    """
    few = len(logits) if logits.is_cuda else max(1, WIDE_BYTES // (4 * logits.shape[1]))
    wide = _memory(few, logits.shape[1], torch.float32, logits.device)
    found = logits.new_empty(targets.shape, dtype=torch.float32)
    for some, wanted, into in zip(logits.split(few), targets.split(few), found.split(few), strict=True):
        exponents = wide[: len(some)].copy_(some)
        chosen, largest = exponents.gather(1, wanted), exponents.amax(1, keepdim=True)
        total = exponents.sub_(largest).exp_().sum(1, keepdim=True)
        into.copy_(total.log() + largest - chosen)
        if to_gradient:
            exponents.div_(total).scatter_add_(1, wanted, total.new_full(wanted.shape, -1.0))
            some.copy_(exponents)
    return found


@lru_cache(maxsize=2)  # in the model's dtype, and in fp32
def _memory(rows: int, words: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Made once, being a step's largest tensor: the allocator would give it another place each time."""
    return torch.empty(rows, words, dtype=dtype, device=device)
