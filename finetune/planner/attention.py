"""What packed attention keeps and needs on a CPU and on a GPU, for passes on the meta device.

On a CPU that is what `kernels.attention` holds; on a GPU what FlashAttention does: queries, keys, values, the result, and a
number for each query (Dao et al. 2022, section 3.1).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from finetune.kernels.attention import QUERY_BLOCK, ROUND_ROWS_TO, attend

NAMES = {"cpu": "planned on a cpu", "cuda": "planned on a gpu"}
"""What `attn_implementation` is called, by the device that is planned for."""

BLOCKS = 4
"""Probabilities of a block of queries that the backward pass holds at a time: scores, their softmax, its gradient, that of
the scores."""


def _on_a_cpu(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    *,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    if dropout:  # where PyTorch keeps every probability
        return attend(module, query, key, value, mask, dropout=dropout, **kwargs)
    return cast(torch.Tensor, _Blocks.apply(query, key, value, int(mask.max()))), None


def _on_a_gpu(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    lengths = mask.flatten().tolist()
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    return torch.cat([_Flash.apply(*part) for part in parts], 2).transpose(1, 2), None


for name, function in ((NAMES["cpu"], _on_a_cpu), (NAMES["cuda"], _on_a_gpu)):
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, longest: int) -> torch.Tensor:
        (heads, tokens, width), groups = query.shape[1:], key.shape[1]
        rows = tokens + ROUND_ROWS_TO
        ctx.save_for_backward(
            query.new_empty(groups, rows, heads // groups, width), *(key.new_empty(groups, rows, width) for _ in "kv")
        )
        ctx.longest = longest
        return query.new_empty(1, tokens, heads, width)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = [torch.empty_like(one) for one in ctx.saved_tensors]
        heads, tokens, width, longest = gradient.shape[2], gradient.shape[1], gradient.shape[3], ctx.longest
        blocks = gradient.new_empty(BLOCKS, heads, min(longest, QUERY_BLOCK), longest)
        d_query = gradient.new_empty(1, heads, tokens, width)
        del blocks
        return d_query, *(one[None, :, :tokens] for one in gradients[1:]), None


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(one) for one in ctx.saved_tensors[:3])
