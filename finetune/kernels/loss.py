"""Cross-entropy over the response tokens only, a few rows of logits at a time.

The head sees only the positions before a labelled token, in chunks, and each chunk's gradient is taken while its logits
are at hand (as in Liger Kernel, Hsu et al. 2024, section 3.2), so neither logits nor their gradient are ever held in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from finetune.data.prepared import IGNORE
from finetune.kernels.attention import mask_of
from finetune.kernels.logits import chunks, nats, rounded_up
from finetune.kernels.packing import Batch, grouped, micro_batches, pack

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CHUNK_BYTES = 24 * 2**20
"""Logits held at a time: as many rows as make up for reading the head's weights, the model's largest matrix."""


def response_loss(model: PreTrainedModel | PeftModel, batch: Batch) -> torch.Tensor:
    """Summed cross-entropy (nats, fp32 scalar) of the labelled tokens.

    `batch` is packed, of one micro-batch. Equal to the model's own loss on each sequence alone, summed instead of
    averaged, for a model that `models.probe` lets pass.
    """
    hidden, targets = _labelled(model, batch)
    # Its weight is read, not its result: logits are then made of labelled positions alone, a chunk at a time.
    head = model.get_output_embeddings()
    return _ChunkedCrossEntropy.apply(hidden, head.weight, head.bias, targets)


def _labelled(model: PreTrainedModel | PeftModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """What the head is given before each labelled token, (targets, width), and those tokens, (targets)."""
    targets = batch["labels"][:, 1:]
    labelled = targets != IGNORE
    return packed_head_inputs(model, batch)[:, :-1][labelled], targets[labelled]


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


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `targets` (rows) under `hidden` (rows, width) and a head (vocabulary, width)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        rows = rounded_up(hidden, _product_dtype(hidden))
        matrix = weight.to(rows.dtype)
        d_hidden = torch.empty_like(rows) if needs_hidden else None
        d_weight: torch.Tensor | None = None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias and bias is not None else None
        # float64, because a batch's sum reaches thousands of nats: fp32 would round some of it off at each chunk.
        total = torch.zeros((), device=hidden.device, dtype=torch.float64)
        for start, logits in chunks(rows, matrix, bias, size=_chunk_bytes(weight)):
            part, wanted = rows[start : start + len(logits)], targets[start : start + len(logits), None]
            # Now, and in the logits' place: the backward pass would have to multiply by the whole vocabulary again.
            total += nats(logits[: len(wanted)], wanted, to_gradient=True).sum(dtype=torch.float64)
            if d_bias is not None:
                d_bias += logits[: len(wanted)].sum(0, dtype=torch.float32)
            if d_hidden is not None:
                torch.mm(logits, matrix, out=d_hidden[start : start + len(part)])
            if needs_weight:
                product = logits.t() @ part
                # fp32, once there are several: bf16 would lose what the later ones bring.
                d_weight = product if d_weight is None else d_weight.float().add_(product)
        d_hidden = None if d_hidden is None else d_hidden[: len(hidden)]
        if needs_weight and d_weight is None:  # no targets: other processes have some, and wait for this one's part
            d_weight = torch.zeros_like(weight)
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
        )


def _product_dtype(hidden: torch.Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _chunk_bytes(weight: torch.Tensor) -> int:
    # A head that learns is spared sums over chunks, each as large as the head, where one chunk is enough.
    return CHUNK_BYTES * (1 + weight.requires_grad)


@dataclass(frozen=True)
class SequenceLoss:
    """The loss of one sequence alone."""

    nats: float
    """Summed cross-entropy of the response tokens."""
    tokens: int


@torch.no_grad()
def sequence_losses(model: PreTrainedModel | PeftModel, rows: Iterable[dict], tokens: int = 1) -> list[SequenceLoss]:
    """The loss of each of `rows` (input_ids, labels), in passes of at most `tokens` tokens; by 1, each alone."""
    model.eval()
    return [loss for count, part in evaluation_passes(rows, tokens) for loss in losses_of(model, part, count)]


def evaluation_passes(rows: Iterable[dict], tokens: int) -> Iterator[tuple[int, Batch]]:
    """`rows` in passes of at most `tokens` tokens, and how many of them each holds; one pass is held at a time."""
    for group in grouped(rows, lambda row: len(row["input_ids"]), tokens):
        (part,) = micro_batches(pack(group), tokens)
        yield len(group), part


def losses_of(model: PreTrainedModel | PeftModel, batch: Batch, count: int) -> list[SequenceLoss]:
    """The losses of the first `count` sequences of a packed micro-batch; its filler may follow them."""
    batch = {key: value.to(model.device) for key, value in batch.items()}
    hidden, targets = _labelled(model, batch)
    head = model.get_output_embeddings()
    rows = rounded_up(hidden, _product_dtype(hidden))
    found = hidden.new_empty(len(targets), dtype=torch.float32)
    for start, logits in chunks(rows, head.weight.to(rows.dtype), head.bias, size=_chunk_bytes(head.weight)):
        wanted = targets[start : start + len(logits), None]
        found[start : start + len(wanted)] = nats(logits[: len(wanted)], wanted, to_gradient=False)[:, 0]
    # A sequence's first token is no target, so its labels are as many as its targets.
    counts = [int((labels != IGNORE).sum()) for labels in batch["labels"][0].split(batch["lengths"].tolist())]
    return [SequenceLoss(part.sum(dtype=torch.float64).item(), len(part)) for part in found.split(counts)[:count]]


def mean_loss(losses: list[SequenceLoss]) -> float:
    """Mean cross-entropy per response token (nats), each token counting the same."""
    return sum(loss.nats for loss in losses) / sum(loss.tokens for loss in losses)


def target_count(batch: Batch) -> int:
    """Labelled tokens of a packed batch."""
    return int((batch["labels"][:, 1:] != IGNORE).sum())
