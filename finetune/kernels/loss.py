"""Cross-entropy over the response tokens only, a few rows of logits at a time.

The logits of a batch are the largest tensor of a small model's step: batch x length x vocabulary. Here the head sees
only the positions before a labelled token, in chunks, and each chunk's gradient is taken while its logits are at hand
(as in Liger Kernel, Hsu et al. 2024, section 3.2), so neither logits nor their gradient are ever held in full.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import pad

from finetune.data.prepared import IGNORE
from finetune.kernels.attention import ROUND_ROWS_TO, mask_of
from finetune.kernels.packing import Batch, micro_batches, pack

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CHUNK_BYTES = 24 * 2**20
"""Logits held at a time: as many rows as make up for reading the head's weights, the model's largest matrix."""

WIDE_BYTES = 4 * 2**20
"""Logits in fp32 at a time: what many passes go over stays in the cache."""


def response_loss(model: PreTrainedModel | PeftModel, batch: Batch) -> torch.Tensor:
    """Summed cross-entropy (nats, fp32 scalar) of the labelled tokens.

    `batch` is packed, of one micro-batch. Equal to the model's own loss on each sequence alone, summed instead of
    averaged, for a model that `models.probe` lets pass.
    """
    targets = batch["labels"][:, 1:]
    labelled = targets != IGNORE
    # Its weight is read, not its result: logits are then made of labelled positions alone, a chunk at a time.
    head = model.get_output_embeddings()
    hidden = packed_head_inputs(model, batch)[:, :-1][labelled]
    # Told by argument: within `forward` gradients are always off, and `needs_input_grad` knows nothing of `no_grad`.
    return _ChunkedCrossEntropy.apply(hidden, head.weight, head.bias, targets[labelled], torch.is_grad_enabled())


def packed_head_inputs(model: PreTrainedModel | PeftModel, batch: Batch) -> torch.Tensor:
    """What the head of `model` is given for a packed micro-batch, (1, tokens, width)."""
    return head_inputs(
        model,
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=mask_of(batch["lengths"]),
    )


def head_inputs(model: PreTrainedModel | PeftModel, *, use_cache: bool = False, **inputs: Any) -> torch.Tensor:
    """What the head of `model` is given for `inputs`, (rows, tokens, width), while it is spared all positions."""
    seen: list[torch.Tensor] = []

    def narrow(module: nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        seen.append(given[0])
        # No rows, since the model calls its head by itself: the logits of all positions would be its largest tensor.
        return (given[0][0, :0],)

    handle = model.get_output_embeddings().register_forward_pre_hook(narrow)
    try:
        model(**inputs, use_cache=use_cache)
    finally:
        handle.remove()
    return seen[0]


@lru_cache(maxsize=1)
def _memory(size: int, words: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for `size` bytes of logits, (rows, words), in `dtype`, and for fewer in fp32: made once, since no other tensor of a step is so large."""
    rows = max(1, size // (dtype.itemsize * words * ROUND_ROWS_TO)) * ROUND_ROWS_TO
    few = min(rows, max(1, WIDE_BYTES // (4 * words)))
    return torch.empty(rows, words, dtype=dtype, device=device), torch.empty(few, words, device=device)


def _nats(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy (float64) of fp32 `logits` (rows, words), which become its gradient by them."""
    chosen = logits.gather(1, targets)
    largest = logits.amax(1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(1, keepdim=True)
    logits.div_(total).scatter_add_(1, targets, logits.new_full(targets.shape, -1.0))
    return (total.log() + largest - chosen).sum(dtype=torch.float64)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `targets` (rows) under `hidden` (rows, width) and a head (vocabulary, width)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        learning: bool,
    ) -> torch.Tensor:
        dtype = torch.get_autocast_dtype(hidden.device.type) if _autocast(hidden) else hidden.dtype
        needs_hidden, needs_weight, needs_bias = (learning and needed for needed in ctx.needs_input_grad[:3])
        # Zeros behind the last row: they add nothing to any gradient, and oneDNN compiles for few numbers of rows.
        rows = pad(hidden.to(dtype), (0, 0, 0, -len(hidden) % ROUND_ROWS_TO))
        d_hidden = torch.empty_like(rows) if needs_hidden else None
        d_weight: torch.Tensor | None = None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias and bias is not None else None
        matrix = weight.to(dtype)
        # A head that learns is spared sums over chunks, each as large as the head, where one chunk is enough.
        memory, wide = _memory(CHUNK_BYTES * (1 + needs_weight), len(weight), dtype, hidden.device)
        # float64, because a batch's sum reaches thousands of nats: fp32 would round some of it off at each chunk.
        total = torch.zeros((), device=hidden.device, dtype=torch.float64)
        for start in range(0, len(rows), len(memory)):
            part, target = rows[start : start + len(memory)], targets[start : start + len(memory), None]
            logits = torch.mm(part, matrix.t(), out=memory[: len(part)])
            if bias is not None:
                logits += bias.to(dtype)
            # Now, and in the logits' place: the backward pass would have to multiply by the whole vocabulary again.
            for some, wanted in zip(logits[: len(target)].split(len(wide)), target.split(len(wide)), strict=True):
                total += _nats(wide[: len(some)].copy_(some), wanted)
                some.copy_(wide[: len(some)])
            if d_bias is not None:
                d_bias += logits[: len(target)].sum(0, dtype=torch.float32)
            if d_hidden is not None:
                torch.mm(logits, matrix, out=d_hidden[start : start + len(part)])
            if needs_weight:
                product = logits.t() @ part
                # fp32, once there are several: bf16 would lose what the later ones bring.
                d_weight = product if d_weight is None else d_weight.float().add_(product)
        d_hidden = None if d_hidden is None else d_hidden[: len(hidden)]
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total.float()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        return (
            None if d_hidden is None else d_hidden.to(hidden_dtype).mul_(gradient),
            None if d_weight is None else d_weight.mul_(gradient),
            None if d_bias is None else d_bias.to(weight_dtype).mul_(gradient),
            None,
            None,
        )


def _autocast(tensor: torch.Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)


@dataclass(frozen=True)
class SequenceLoss:
    """The loss of one sequence alone."""

    nats: float
    """Summed cross-entropy of the response tokens."""
    tokens: int


@torch.no_grad()
def sequence_losses(model: PreTrainedModel | PeftModel, rows: Iterable[dict]) -> list[SequenceLoss]:
    """The loss of each of `rows` (input_ids, labels), each alone in its pass."""
    model.eval()
    losses = []
    for row in rows:
        (batch,) = micro_batches(pack([row]), len(row["input_ids"]))
        batch = {key: value.to(model.device) for key, value in batch.items()}
        losses.append(SequenceLoss(response_loss(model, batch).item(), target_count(batch)))
    return losses


def mean_loss(losses: list[SequenceLoss]) -> float:
    """Mean cross-entropy per response token (nats), each token counting the same."""
    return sum(loss.nats for loss in losses) / sum(loss.tokens for loss in losses)


def target_count(batch: Batch) -> int:
    """Labelled tokens of a packed batch."""
    return int((batch["labels"][:, 1:] != IGNORE).sum())
