"""The ways to compute each kernel: the plain one, ours, and those of other packages, as functions of the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention, silu

from .results import Skipped
from .timing import Step


@dataclass(frozen=True)
class Sizes:
    """Of a model, and of a packed pass."""

    width: int
    mlp: int
    heads: int
    key_heads: int
    words: int
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class Like(NamedTuple):
    """What tensors are made as."""

    dtype: torch.dtype
    device: torch.device


Given = Callable[[Sizes, Like], list[torch.Tensor]]
Way = Callable[[Sizes, Like], Step]
"""Raises ModuleNotFoundError where its package is missing."""


@dataclass(frozen=True)
class Kernel:
    """What is computed: from which tensors, plainly, and in which ways."""

    given: Given
    plain: Way
    ways: dict[str, Way]


def _check_cuda(like: Like) -> None:
    if like.device.type != "cuda":
        raise Skipped("is made for CUDA alone")


def _drawn(*shape: int, like: Like, std: float = 1.0, grad: bool = True) -> torch.Tensor:
    return (torch.randn(*shape, device=like.device) * std).to(like.dtype).requires_grad_(grad)


# The loss: summed cross-entropy of (tokens, width) under a frozen head (words, width), as QLoRA has it.


def _loss_given(sizes: Sizes, like: Like) -> list[torch.Tensor]:
    hidden = _drawn(sizes.tokens, sizes.width, like=like)
    head = _drawn(sizes.words, sizes.width, like=like, std=sizes.width**-0.5, grad=False)
    return [hidden, head, torch.randint(sizes.words, (sizes.tokens,), device=hidden.device)]


def _plain_loss(sizes: Sizes, like: Like) -> Step:
    return lambda hidden, head, targets: cross_entropy(linear(hidden, head).float(), targets, reduction="sum")


def _our_loss(sizes: Sizes, like: Like) -> Step:
    from finetune.kernels.loss import _ChunkedCrossEntropy

    return lambda hidden, head, targets: _ChunkedCrossEntropy.apply(hidden, head, None, targets)


def _liger_loss(sizes: Sizes, like: Like) -> Step:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    _check_cuda(like)
    return lambda hidden, head, targets: liger_fused_linear_cross_entropy(hidden, head, targets, reduction="sum")


def _cut_loss(sizes: Sizes, like: Like) -> Step:
    from cut_cross_entropy import linear_cross_entropy

    _check_cuda(like)
    return lambda hidden, head, targets: linear_cross_entropy(hidden, head, targets, reduction="sum")


# Attention: causal in each of the packed sequences; query (tokens, heads, width), keys and values of fewer heads.


def _attention_given(sizes: Sizes, like: Like) -> list[torch.Tensor]:
    counts = (sizes.heads, sizes.key_heads, sizes.key_heads)
    return [_drawn(sizes.tokens, count, sizes.head_width, like=like) for count in counts]


def _plain_attention(sizes: Sizes, like: Like) -> Step:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = (x.repeat_interleave(sizes.heads // sizes.key_heads, 1) for x in (k, v))
        number = torch.repeat_interleave(torch.tensor(sizes.lengths, device=q.device))
        mask = (number[:, None] == number) & torch.ones(sizes.tokens, sizes.tokens, device=q.device).tril().bool()
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)

    return attend


def _our_attention(sizes: Sizes, like: Like) -> Step:
    from finetune.kernels.attention import attend, mask_of

    mask = mask_of(torch.tensor(sizes.lengths))

    def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return attend(nn.Module(), q, k, v, mask)[0][0]

    return ours


def _varlen(sizes: Sizes, run: Callable[..., Any]) -> Step:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        ends = torch.tensor([0, *accumulate(sizes.lengths)], dtype=torch.int32, device=q.device)
        k, v = (x.repeat_interleave(sizes.heads // sizes.key_heads, 1) for x in (k, v))
        out: torch.Tensor = run(q, k, v, ends, ends, max(sizes.lengths), max(sizes.lengths))
        return out

    return attend


def _torch_varlen(sizes: Sizes, like: Like) -> Step:
    """Flash attention that torch brings (2.10 and later)."""
    from torch.nn.attention.varlen import varlen_attn

    _check_cuda(like)
    return _varlen(sizes, partial(varlen_attn, window_size=(-1, 0)))


def _flash_attention(sizes: Sizes, like: Like) -> Step:
    from flash_attn import flash_attn_varlen_func

    _check_cuda(like)
    return _varlen(sizes, partial(flash_attn_varlen_func, causal=True))


# RMSNorm of (tokens, width), with a weight.


def _norm_given(sizes: Sizes, like: Like) -> list[torch.Tensor]:
    return [_drawn(sizes.tokens, sizes.width, like=like), _drawn(sizes.width, like=like)]


def _plain_norm(sizes: Sizes, like: Like) -> Step:
    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype)

    return norm


def _our_norm(sizes: Sizes, like: Like) -> Step:
    from finetune.kernels.rms_norm import RMSNorm

    return lambda x, weight: RMSNorm.apply(x, weight, 1e-5)


def _liger_norm(sizes: Sizes, like: Like) -> Step:
    from liger_kernel.transformers.functional import liger_rms_norm

    _check_cuda(like)
    return lambda x, weight: liger_rms_norm(x, weight, 1e-5, in_place=False)


# The gate: silu(gate) * up, both (tokens, width of the MLP).


def _gate_given(sizes: Sizes, like: Like) -> list[torch.Tensor]:
    return [_drawn(sizes.tokens, sizes.mlp, like=like) for _ in range(2)]


def _plain_gate(sizes: Sizes, like: Like) -> Step:
    return lambda gate, up: silu(gate) * up


def _our_gate(sizes: Sizes, like: Like) -> Step:
    from finetune.kernels.layers import _SiluGate

    return lambda gate, up: _SiluGate.apply(gate, up)


def _liger_gate(sizes: Sizes, like: Like) -> Step:
    from liger_kernel.transformers.functional import liger_swiglu

    _check_cuda(like)
    return lambda gate, up: liger_swiglu(gate, up)


# A linear layer of QLoRA: x (tokens, width), A and B of rank 16, over a frozen weight (mlp, width) in 4 bits.

RANK, SCALE = 16, 2.0


def _lora_given(sizes: Sizes, like: Like) -> list[torch.Tensor]:
    x = _drawn(sizes.tokens, sizes.width, like=like)
    down, up = _drawn(RANK, sizes.width, like=like, std=0.02), _drawn(sizes.mlp, RANK, like=like, std=0.02)
    return [x, down, up]


def _in_4_bits(sizes: Sizes, like: Like) -> tuple[torch.Tensor, Any]:
    """Codes and state, the same at each call."""
    from bitsandbytes.functional import quantize_4bit

    torch.manual_seed(1)
    weight = _drawn(sizes.mlp, sizes.width, like=like, std=0.02, grad=False)
    codes, state = quantize_4bit(weight, blocksize=32, compress_statistics=True, quant_type="nf4")
    return codes, state


def _plain_lora(sizes: Sizes, like: Like) -> Step:
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(*_in_4_bits(sizes, like))
    return lambda x, down, up: linear(x, weight.to(x.dtype)) + SCALE * linear(linear(x, down), up)


def _our_lora(sizes: Sizes, like: Like) -> Step:
    from bitsandbytes.functional import dequantize_4bit

    from finetune.kernels.lora import _LoraLinear

    weight = partial(dequantize_4bit, *_in_4_bits(sizes, like))
    return lambda x, down, up: _LoraLinear.apply(x, weight, None, down, up, SCALE)


def _bitsandbytes_lora(sizes: Sizes, like: Like) -> Step:
    from bitsandbytes import matmul_4bit

    codes, state = _in_4_bits(sizes, like)

    def step(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return matmul_4bit(x, codes.t(), quant_state=state) + SCALE * linear(linear(x, down), up)

    return step


KERNELS = {
    "loss": Kernel(
        _loss_given,
        _plain_loss,
        {"plain": _plain_loss, "ours": _our_loss, "liger": _liger_loss, "cut cross-entropy": _cut_loss},
    ),
    "attention": Kernel(
        _attention_given,
        _plain_attention,
        {
            "plain": _plain_attention,
            "ours": _our_attention,
            "torch varlen": _torch_varlen,
            "flash-attn": _flash_attention,
        },
    ),
    "norm": Kernel(_norm_given, _plain_norm, {"plain": _plain_norm, "ours": _our_norm, "liger": _liger_norm}),
    "gate": Kernel(_gate_given, _plain_gate, {"plain": _plain_gate, "ours": _our_gate, "liger": _liger_gate}),
    "4-bit linear": Kernel(
        _lora_given,
        _plain_lora,
        {"16 bits": _plain_lora, "ours": _our_lora, "bitsandbytes": _bitsandbytes_lora},
    ),
}
