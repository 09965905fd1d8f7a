"""Cross-entropy over the response tokens only, a few rows of logits at a time.

The head sees only the positions before a labelled token, in chunks, and each chunk's gradient is taken while its logits
are at hand (as in Liger Kernel, Hsu et al. 2024, section 3.2), so neither logits nor their gradient are ever held in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import pad

from finetune.data.prepared import IGNORE
from finetune.kernels.attention import ROUND_ROWS_TO, mask_of
from finetune.kernels.packing import Batch, grouped, micro_batches, pack

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CHUNK_BYTES = 24 * 2**20
"""Logits held at a time: as many rows as make up for reading the head's weights, the model's largest matrix."""

WIDE_BYTES = 4 * 2**20
"""Logits in fp32 at a time on a CPU: few enough that they stay in the cache. On CUDA a launch costs more than that."""


def response_loss(model: PreTrainedModel | PeftModel, batch: Batch) -> torch.Tensor:
    """Summed cross-entropy (nats, fp32 scalar) of the labelled tokens.

    `batch` is packed, of one micro-batch. Equal to the model's own loss on each sequence alone, summed instead of
    averaged, for a model that `models.check_model` accepts.
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
    """What the head of `model` is given for `inputs`, (rows, tokens, width), without making any logits."""
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
        rows = _rounded_up(hidden, _product_dtype(hidden))
        matrix = weight.to(rows.dtype)
        d_hidden = torch.empty_like(rows) if needs_hidden else None
        d_weight: torch.Tensor | None = None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias and bias is not None else None
        # float64, because a batch's sum reaches thousands of nats: fp32 would round some of it off at each chunk.
        total = torch.zeros((), device=hidden.device, dtype=torch.float64)
        for start, logits in _chunks(rows, matrix, bias, size=_chunk_bytes(weight)):
            part, wanted = rows[start : start + len(logits)], targets[start : start + len(logits), None]
            # Now, and in the logits' place: the backward pass would have to multiply by the whole vocabulary again.
            total += _nats(logits[: len(wanted)], wanted, to_gradient=True).sum(dtype=torch.float64)
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


def _rounded_up(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`hidden` (rows, width) in `dtype`, with rows of zeros up to a multiple of `ROUND_ROWS_TO`."""
    return pad(hidden.to(dtype), (0, 0, 0, -len(hidden) % ROUND_ROWS_TO))


def _chunks(
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


def _nats(logits: torch.Tensor, targets: torch.Tensor, *, to_gradient: bool) -> torch.Tensor:
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


@dataclass(frozen=True)
class SequenceLoss:
    """The loss of one sequence alone."""

    nats: float
    """Summed cross-entropy of the response tokens."""
    tokens: int


@torch.no_grad()
def sequence_losses(model: PreTrainedModel | PeftModel, rows: Iterable[dict], tokens: int = 1) -> list[SequenceLoss]:
    """The loss of each of `rows` (input_ids, labels), in micro-batches of at most `tokens` tokens; by 1, each alone."""
    model.eval()
    return [loss for count, part in packed_rows(rows, tokens) for loss in losses_of(model, part, count)]


def packed_rows(rows: Iterable[dict], tokens: int) -> Iterator[tuple[int, Batch]]:
    """Pack `rows` into micro-batches of at most `tokens` tokens; yields the number of rows in each, and the micro-batch."""
    for group in grouped(rows, lambda row: len(row["input_ids"]), tokens):
        (part,) = micro_batches(pack(group), tokens)
        yield len(group), part


def losses_of(model: PreTrainedModel | PeftModel, batch: Batch, count: int) -> list[SequenceLoss]:
    """The losses of the first `count` sequences of a packed micro-batch; its filler may follow them."""
    batch = {key: value.to(model.device) for key, value in batch.items()}
    hidden, targets = _labelled(model, batch)
    head = model.get_output_embeddings()
    rows = _rounded_up(hidden, _product_dtype(hidden))
    found = hidden.new_empty(len(targets), dtype=torch.float32)
    for start, logits in _chunks(rows, head.weight.to(rows.dtype), head.bias, size=_chunk_bytes(head.weight)):
        wanted = targets[start : start + len(logits), None]
        found[start : start + len(wanted)] = _nats(logits[: len(wanted)], wanted, to_gradient=False)[:, 0]
    # A sequence's first token is no target, so its labels are as many as its targets.
    counts = [int((labels != IGNORE).sum()) for labels in batch["labels"][0].split(batch["lengths"].tolist())]
    return [SequenceLoss(part.sum(dtype=torch.float64).item(), len(part)) for part in found.split(counts)[:count]]


def mean_loss(losses: list[SequenceLoss]) -> float:
    """Mean cross-entropy per response token (nats), each token counting the same."""
    return sum(loss.nats for loss in losses) / sum(loss.tokens for loss in losses)
