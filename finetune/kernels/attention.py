"""Causal attention over packed sequences: each attends to itself alone, and no position is padding.

The sequences of a batch lie end to end in one row. On a CPU attention is computed in blocks of queries small enough
for the cache, and probabilities are computed again in the backward pass (as in FlashAttention, Dao et al. 2022,
section 3.1), so memory grows with length times the block, not with length squared.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetune.errors import UserError

ATTENTION_NAME = "packed"
"""What `attn_implementation` is called when a model is loaded."""

QUERY_BLOCK = 256
"""Queries whose probabilities are held at a time: 256 x 256 keys x 9 heads in bf16 are about 1 MB."""

ROUND_ROWS_TO = 64
"""Rows are rounded up to a multiple of this: oneDNN compiles a kernel for each new shape, and keeps it."""


def mask_of(lengths: torch.Tensor) -> torch.Tensor:
    """The attention mask that says 'packed sequences of so many tokens': (1, 1, 1, sequences), integers.

    transformers hands a mask of four dimensions to every layer as it is, also when a checkpointed
    layer runs again; and no other mask holds integers.
    """
    return lengths.cpu().view(1, 1, 1, -1)


def is_packed(attention_mask: torch.Tensor | None) -> bool:
    """Whether `mask_of` made the mask."""
    return attention_mask is not None and attention_mask.dtype == torch.int64


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
    if not is_packed(attention_mask):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    lengths = cast(torch.Tensor, attention_mask).flatten().tolist()
    check_is_plain(kwargs, max(lengths))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type in ("cpu", "meta") and not dropout:
        return _PackedAttention.apply(query, key, value, lengths, scaling), None
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    done = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=True)
        for q, k, v in parts
    ]
    return torch.cat(done, 2).transpose(1, 2), None


AttentionInterface.register(ATTENTION_NAME, attend)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def check_is_plain(kwargs: dict, longest: int) -> None:
    check_window(kwargs.get("sliding_window"), longest)
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise UserError(f"model.source: this model's attention has {name}, which isn't known here; choose another")


def check_window(window: int | None, longest: int) -> None:
    """Raise UserError if attention over `window` tokens isn't attention over all of a sequence of `longest`."""
    if window is not None and window < longest:
        raise UserError(f"data.max_length: this model attends to {window} tokens at most; lower it to {window}")


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], scaling: float
    ) -> torch.Tensor:
        (heads, tokens, width), groups = query.shape[1:], key.shape[1]
        per_group = query[0].view(groups, -1, tokens, width).transpose(1, 2)
        q, k, v = (_with_slack(x) for x in (per_group * scaling, key[0], value[0]))
        out = query.new_empty(tokens, heads, width)
        attention(q, k, v, lengths, out)
        ctx.save_for_backward(q, k, v)
        ctx.lengths, ctx.scaling = lengths, scaling
        return out[None]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        heads, tokens = gradient.shape[2], gradient.shape[1]
        d_q, d_k, d_v = (torch.zeros_like(x) for x in (q, k, v))
        attention_backward(gradient[0], q, k, v, ctx.lengths, d_q, d_k, d_v)
        d_q = d_q[:, :tokens].transpose(1, 2).reshape(1, heads, tokens, -1).mul_(ctx.scaling)
        return d_q, d_k[None, :, :tokens], d_v[None, :, :tokens], None, None


def _with_slack(x: torch.Tensor) -> torch.Tensor:
    """`x` (heads, tokens, ...), contiguous, with room for the last block to be rounded up."""
    slack = x.new_zeros(len(x), ROUND_ROWS_TO, *x.shape[2:])
    return torch.cat([x, slack], 1)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], out: torch.Tensor) -> None:
    """Write causal attention within each sequence into `out` (tokens, heads, width).

    q: (key heads, tokens + slack, heads per key head, width), scaled; k and v: (key heads, tokens + slack, width). Query
    heads that share a key head lie next to each other, so they are rows of one product, and keys aren't copied for each.
    """
    groups, _, per_group, width = q.shape
    for start, first, end, last in _blocks(lengths):
        p = _probabilities(q[:, first:last], k[:, start:last])
        result = (p @ v[:, start:last]).view(groups, -1, per_group, width)
        out[first:end].view(-1, groups, per_group, width).copy_(result[:, : end - first].transpose(0, 1))


def attention_backward(
    gradient: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: list[int],
    d_q: torch.Tensor,
    d_k: torch.Tensor,
    d_v: torch.Tensor,
) -> None:
    """Write the gradients of `attention`'s q, k and v into tensors of their shapes, given that of its result."""
    for sequence in _sequences(lengths):
        start, last = sequence[0][0], sequence[-1][3]
        # fp32, because every block of queries adds to the same keys and values, and bf16 would lose the later ones.
        sums = [
            torch.zeros_like(x[:, start:last], dtype=torch.float32, memory_format=torch.contiguous_format)
            for x in ((k, v) if len(sequence) > 1 else ())
        ]
        for _, first, end, stop in sequence:
            keys, values = k[:, start:stop], v[:, start:stop]
            queries = q[:, first:stop]
            # Rows beyond `end` belong to another sequence or to none: without a gradient they add nothing to any sum.
            g = torch.zeros_like(queries, memory_format=torch.contiguous_format)
            g[:, : end - first] = gradient[first:end].view(-1, *q.shape[::2], q.shape[3]).transpose(0, 1)
            g, rows = g.flatten(1, 2), queries.flatten(1, 2)
            # Made again, because those of all blocks together grow with the square of a sequence's length.
            p = _probabilities(queries, keys)
            # One pass over the block, where p * (d_p - (p * d_p).sum()) would write two more tensors of its size.
            d_s = torch._softmax_backward_data(g @ values.transpose(1, 2), p, -1, p.dtype)
            d_q[:, first:end] = (d_s @ keys).view(queries.shape)[:, : end - first]
            for total, part in zip(sums or (d_k[:, start:], d_v[:, start:]), ((d_s, rows), (p, g)), strict=True):
                product = part[0].transpose(1, 2) @ part[1]
                if sums:
                    total[:, : stop - start] += product
                else:
                    total[:, : stop - start] = product
        for total, into in zip(sums, (d_k, d_v), strict=False):
            into[:, start:last] = total


Block = tuple[int, int, int, int]
"""Start of the sequence, first query, end of the queries, that end rounded up: what lies between is thrown away."""


def _blocks(lengths: list[int]) -> Iterator[Block]:
    for sequence in _sequences(lengths):
        yield from sequence


def _sequences(lengths: list[int]) -> Iterator[list[Block]]:
    """The blocks of each sequence."""
    start = 0
    for length in lengths:
        stop = start + length
        ends = [(first, min(stop, first + QUERY_BLOCK)) for first in range(start, stop, QUERY_BLOCK)]
        yield [(start, first, end, first + -(-(end - first) // ROUND_ROWS_TO) * ROUND_ROWS_TO) for first, end in ends]
        start = stop


def _probabilities(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """softmax(q kT) of the last positions: (key heads, queries x heads per key head, keys)."""
    size, per_group = query.shape[1:3]
    scores = query.flatten(1, 2) @ key.transpose(1, 2)
    if not scores.is_meta:  # where memory is planned there are no numbers
        scores.view(len(key), size, per_group, -1)[..., -size:] += _causal(size, scores.dtype)
    return scores.softmax(-1, dtype=scores.dtype)


@lru_cache(maxsize=2 * QUERY_BLOCK)
def _causal(size: int, dtype: torch.dtype) -> torch.Tensor:
    """(queries, 1, keys)."""
    return torch.full((size, size), float("-inf"), dtype=dtype).triu_(1)[:, None]
