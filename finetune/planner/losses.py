"""The memory of the loss (`kernels.loss`), and of what the vocabulary's width costs else."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from finetune.kernels.attention import ROUND_ROWS_TO
from finetune.kernels.loss import CHUNK_BYTES, WIDE_BYTES


@dataclass(frozen=True)
class LossBytes:
    """Bytes beside the head's weight, (words, width)."""

    logits: int
    """A chunk, and some of its rows in fp32; kept from pass to pass."""
    between: int
    """What waits for the backward pass: the gradients of the head's inputs, and of its weight if it is trained."""
    most: int
    """While the loss is computed, logits left out."""


def loss_bytes(weight: torch.Tensor, targets: int, size: int) -> LossBytes:
    """With `targets` labelled tokens in a pass, products in numbers of `size` bytes."""
    words, width = weight.shape
    trained = weight.requires_grad
    rows = targets + -targets % ROUND_ROWS_TO
    chunk = max(1, CHUNK_BYTES * (1 + trained) // (size * words * ROUND_ROWS_TO)) * ROUND_ROWS_TO
    hidden = rows * width * size
    head = words * width
    between = hidden + head * weight.itemsize * trained
    # Over several chunks: the sum in fp32, the product that is added, in its own dtype and widened for it, and at the second
    # chunk what the sum is made of.
    sums = head * (size if rows <= chunk else 4 + size + 4 + size) * trained
    few = max(1, WIDE_BYTES // (4 * words))
    return LossBytes(logits=min(rows, chunk) * words * size + few * words * 4, between=between, most=3 * hidden + sums)
