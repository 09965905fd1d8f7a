"""Causal attention over packed sequences: each attends to itself alone, and no position is padding.

The sequences of a batch lie end to end in one row. On a CPU attention is computed in blocks of queries small enough
for the cache, and probabilities are computed again in the backward pass (as in FlashAttention, Dao et al. 2022,
section 3.1), so memory grows with length times the block, not with length squared.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetune.errors import UserError

ATTENTION_NAME = "packed"
"""What `attn_implementation` is called when a model is loaded."""

QUERY_BLOCK = 128
"""Queries whose probabilities are held at a time: 128 x 256 keys x 9 heads in bf16 fit a 1 MB cache."""

ROUND_ROWS_TO = 64
"""Rows are rounded up to a multiple of this: oneDNN compiles a kernel for each new shape, and keeps it."""


def mask_of(lengths: torch.Tensor) -> torch.Tensor:
    """The attention mask that says 'packed sequences of so many tokens': (1, 1, 1, sequences), integers.

    transformers hands a mask of four dimensions to every layer as it is, also when a checkpointed
    layer runs again; and no other mask holds integers.
    """
    return lengths.cpu().view(1, 1, 1, -1)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention for transformers' models: over packed sequences under `mask_of`, else transformers' own.

    query: (1, heads, tokens, width); key and value: (1, key heads, tokens, width). Returns (1, tokens, heads, width).
    Raises UserError for models whose attention isn't plainly causal.
    """
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    lengths = attention_mask.flatten().tolist()
    _check_is_plain(kwargs, max(lengths))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type == "cpu" and not dropout:
        return _PackedAttention.apply(query, key, value, lengths, scaling), None
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    done = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=True)
        for q, k, v in parts
    ]
    return torch.cat(done, 2).transpose(1, 2), None


AttentionInterface.register(ATTENTION_NAME, attend)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def _check_is_plain(kwargs: dict, longest: int) -> None:
    window = kwargs.get("sliding_window")
    if window is not None and window < longest:
        raise UserError(f"data.max_length: this model attends to {window} tokens at most; lower it to {window}")
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise UserError(f"model.source: this model's attention has {name}, which isn't known here; choose another")


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], scaling: float
    ) -> torch.Tensor:
        heads, tokens, width = query.shape[1:]
        # Slack, for the last block's rounded rows would otherwise reach past the end of the tensors.
        q, k, v = _with_slack(query[0] * scaling), _with_slack(key[0]), _with_slack(value[0])
        out = query.new_empty(1, tokens, heads, width)
        for start, first, end, last in _blocks(lengths):
            p = _probabilities(q[:, first:last], k[:, start:last])
            result = _per_head(p @ v[:, start:last], heads).transpose(0, 1)
            out[0, first:end] = result[: end - first]
        ctx.save_for_backward(q, k, v)
        ctx.lengths, ctx.scaling = lengths, scaling
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        heads, groups = len(q), len(k)
        tokens = gradient.shape[1]
        d_q = torch.empty_like(q)
        # fp32, because every block of queries adds to the same keys and values, and bf16 would lose the later ones.
        d_k, d_v = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        for start, first, end, last in _blocks(ctx.lengths):
            queries, keys, values = q[:, first:last], k[:, start:last], v[:, start:last]
            # Rows beyond `end` belong to another sequence or to none: without a gradient they add nothing to any sum.
            g = torch.zeros_like(queries, memory_format=torch.contiguous_format)
            g[:, : end - first] = gradient[0, first:end].transpose(0, 1)
            g = _per_group(g, groups)
            # Made again, because those of all blocks together grow with the square of a sequence's length.
            p = _probabilities(queries, keys)
            d_v[:, start:last] += p.transpose(1, 2) @ g
            d_p = g @ values.transpose(1, 2)
            # One pass over the block, where p * (d_p - (p * d_p).sum()) would write two more tensors of its size.
            d_s = torch._softmax_backward_data(d_p, p, -1, p.dtype)
            d_q[:, first:end] = _per_head(d_s @ keys, heads)[:, : end - first]
            d_k[:, start:last] += d_s.transpose(1, 2) @ _per_group(queries, groups)
        d_q, d_k, d_v = (d[None, :, :tokens].to(q.dtype) for d in (d_q.mul_(ctx.scaling), d_k, d_v))
        return d_q, d_k, d_v, None, None


def _with_slack(x: torch.Tensor) -> torch.Tensor:
    """(heads, tokens, width), contiguous, with room for the last block to be rounded up."""
    return nn.functional.pad(x, (0, 0, 0, ROUND_ROWS_TO))


def _blocks(lengths: list[int]) -> Iterator[tuple[int, int, int, int]]:
    """(start of the sequence, first query, end of the queries, that end rounded up) of each block.

    What lies between the two ends is computed and thrown away.
    """
    start = 0
    for length in lengths:
        for first in range(start, start + length, QUERY_BLOCK):
            end = min(start + length, first + QUERY_BLOCK)
            yield start, first, end, first + -(-(end - first) // ROUND_ROWS_TO) * ROUND_ROWS_TO
        start += length


def _probabilities(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """softmax(q kT) of the last positions: (key heads, heads per key head x queries, keys)."""
    size = query.shape[1]
    # Query heads that share a key head become rows of one product, so keys and values aren't copied for each head.
    scores = _per_group(query, len(key)) @ key.transpose(1, 2)
    scores.view(len(key), -1, size, key.shape[1])[..., -size:] += _causal(size, scores.dtype)
    return scores.softmax(-1, dtype=scores.dtype)


def _per_group(x: torch.Tensor, groups: int) -> torch.Tensor:
    """(heads, rows, width) -> (key heads, heads per key head x rows, width)."""
    return x.reshape(groups, -1, x.shape[-1])


def _per_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of `_per_group`."""
    return x.view(heads, -1, x.shape[-1])


@lru_cache(maxsize=2 * QUERY_BLOCK)
def _causal(size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((size, size), float("-inf"), dtype=dtype).triu_(1)
