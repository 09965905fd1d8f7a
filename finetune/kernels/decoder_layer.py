"""A Llama's decoder layer as one autograd step, in memory that each step uses again.

Per token, the backward pass keeps the two residuals, q, k, v, the attention's result, the two halves of the
gate, and x Aᵀ of each adapter. Norms, the gate's product and 16-bit weights are made again. Written as modules the same
step is 700 operations, most of which ask the allocator for a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from finetune.kernels.attention import ROUND_ROWS_TO, attention, attention_backward
from finetune.kernels.joint_linear import JointLinear
from finetune.kernels.linear_parts import LinearParts, linear_parts
from finetune.kernels.rms_norm import RMSNormStep
from finetune.kernels.workspace import Workspace


@dataclass(frozen=True)
class PackedInput:
    """The packed sequences of a forward, as all its layers have them."""

    cos: torch.Tensor
    """(tokens, width of a head), with `sin`."""
    sin: torch.Tensor
    lengths: list[int]
    """Tokens of each sequence; they lie end to end."""


class Kept(NamedTuple):
    """What the backward pass needs of a forward."""

    x: torch.Tensor
    reciprocal: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    attended: torch.Tensor
    middle: torch.Tensor
    middle_reciprocal: torch.Tensor
    squeezed: tuple[torch.Tensor, ...]


class DecoderLayer:
    """The step that replaces `layer`, the model's layer number `number`."""

    def __init__(self, layer: Any, number: int, workspace: Workspace) -> None:
        self_attn, mlp = layer.self_attn, layer.mlp
        self.number, self._workspace = number, workspace
        self._width, self._scaling = self_attn.head_dim, self_attn.scaling
        self._first_norm = RMSNormStep(layer.input_layernorm, workspace)
        self._second_norm = RMSNormStep(layer.post_attention_layernorm, workspace)
        self.linears = [
            JointLinear([_parts(one) for one in modules])
            for modules in (
                (self_attn.q_proj, self_attn.k_proj, self_attn.v_proj),
                (self_attn.o_proj,),
                (mlp.gate_proj, mlp.up_proj),
                (mlp.down_proj,),
            )
        ]
        self._qkv, self._o, self._gate_up, self._down = self.linears
        self._key_heads = _parts(self_attn.k_proj).shape[0] // self._width
        self._per_group = _parts(self_attn.q_proj).shape[0] // self._width // self._key_heads

    @property
    def parameters(self) -> list[torch.Tensor]:
        """The trained parameters, in the order of `backward`'s gradients."""
        norms = [one.weight for one in (self._second_norm, self._first_norm) if one.weight.requires_grad]
        linears = [self._down, self._gate_up, self._o, self._qkv]
        return [parameter for one in linears for parameter in one.parameters] + norms

    def forward(self, x: torch.Tensor, given: PackedInput, *, kept: object) -> tuple[torch.Tensor, Kept]:
        """The result for `x` (tokens, width), and what `backward` needs, in blocks named `kept`."""
        take, tokens, dtype = self._workspace.rows, len(x), x.dtype
        squeezed = tuple(
            take(("squeezed", index, kept), tokens, one.rank, dtype=dtype) for index, one in enumerate(self.linears)
        )
        h, reciprocal = self._first_norm.forward(x)
        qkv = take("qkv", tokens, self._qkv.shape[0], dtype=dtype)
        self._qkv.forward(h, qkv, squeezed[0])
        q, k, v = self._turned(qkv, given, kept)
        attended = take(("attended", kept), tokens, self._o.shape[1], dtype=dtype)
        attention(q, k, v, given.lengths, attended.view(tokens, -1, self._width))
        middle = take(("middle", kept), tokens, x.shape[1], dtype=dtype)
        self._o.forward(attended, middle, squeezed[1])
        middle.add_(x)
        h, middle_reciprocal = self._second_norm.forward(middle)
        gate, up = self._gate_and_up(h, squeezed[2])
        gated = take("gated", tokens, self._down.shape[1], dtype=dtype)
        torch.ops.aten.silu.out(gate, out=gated).mul_(up)  # SwiGLU (Shazeer 2020, equation 6)
        out = take(("out", self.number), tokens, x.shape[1], dtype=dtype)
        self._down.forward(gated, out, squeezed[3])
        out.add_(middle)
        return out, Kept(x, reciprocal, q, k, v, attended, middle, middle_reciprocal, squeezed)

    def backward(
        self, gradient: torch.Tensor, kept: Kept, given: PackedInput, d_x: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Gradients of `parameters`; that of x goes into `d_x`, unless that is None."""
        take, tokens, dtype = self._workspace.rows, len(gradient), gradient.dtype
        h = self._second_norm.again(kept.middle, kept.middle_reciprocal)
        gate, up = self._gate_and_up(h, kept.squeezed[2])
        activated = torch.ops.aten.silu.out(gate, out=take("gated", *gate.shape, dtype=dtype))
        gated = torch.mul(activated, up, out=take("gated again", *gate.shape, dtype=dtype))
        d_gated = take("d gated", *gate.shape, dtype=dtype)
        grads = self._down.backward(gradient, gated, kept.squeezed[3], d_gated)
        d_gate_up = take("d gate and up", tokens, self._gate_up.shape[0], dtype=dtype)
        d_gate, d_up = d_gate_up.chunk(2, dim=1)
        torch.mul(activated, d_gated, out=d_up)
        torch.ops.aten.silu_backward.grad_input(d_gated.mul_(up), gate, grad_input=d_gate)
        d_h = take("d normed", *h.shape, dtype=dtype)
        grads += self._gate_up.backward(d_gate_up, h, kept.squeezed[2], d_h)
        d_middle = take("d middle", *h.shape, dtype=dtype)
        norm_grads = self._second_norm.backward(d_h, kept.middle_reciprocal, gradient, d_middle)
        d_attended = take("d attended", *kept.attended.shape, dtype=dtype)
        grads += self._o.backward(d_middle, kept.attended, kept.squeezed[1], d_attended)
        d_qkv = self._turned_back(d_attended, kept, given)
        h = self._first_norm.again(kept.x, kept.reciprocal)
        wanted = d_x is not None or self._first_norm.weight.requires_grad
        grads += self._qkv.backward(d_qkv, h, kept.squeezed[0], d_h if wanted else None)
        if wanted:
            norm_grads += self._first_norm.backward(d_h, kept.reciprocal, d_middle, d_x)
        return grads + norm_grads

    def _gate_and_up(self, h: torch.Tensor, squeezed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both halves, (tokens, width of the MLP). Made again for the backward pass: kept, they would be half of all."""
        both = self._workspace.rows("gate and up", len(h), self._gate_up.shape[0], dtype=h.dtype)
        self._gate_up.forward(h, both, squeezed)
        gate, up = both.chunk(2, dim=1)
        return gate, up

    def _turned(
        self, qkv: torch.Tensor, given: PackedInput, kept: object
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, k, v = self._split(qkv)
        turned_q, turned_k, copied_v = self._heads(len(qkv), kept, qkv.dtype)
        _rotate(q, given.cos * self._scaling, given.sin * self._scaling, turned_q[:, : len(qkv)].transpose(0, 1))
        _rotate(k, given.cos, given.sin, turned_k[:, : len(qkv)].transpose(0, 1))
        copied_v[:, : len(qkv)] = v.transpose(0, 1)
        return turned_q, turned_k, copied_v

    def _turned_back(self, d_attended: torch.Tensor, kept: Kept, given: PackedInput) -> torch.Tensor:
        tokens = len(d_attended)
        d_q, d_k, d_v = self._heads(tokens, "gradient", d_attended.dtype)
        attention_backward(
            d_attended.view(tokens, -1, self._width), kept.q, kept.k, kept.v, given.lengths, d_q, d_k, d_v
        )
        d_qkv = self._workspace.rows("qkv", tokens, self._qkv.shape[0], dtype=d_attended.dtype)
        q, k, v = self._split(d_qkv)
        _rotate_back(d_q[:, :tokens].transpose(0, 1), given.cos * self._scaling, given.sin * self._scaling, q)
        _rotate_back(d_k[:, :tokens].transpose(0, 1), given.cos, given.sin, k)
        v.copy_(d_v[:, :tokens].transpose(0, 1))
        return d_qkv

    def _split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views of q (tokens, key heads, heads per key head, width), k and v (tokens, key heads, width)."""
        heads = self._key_heads * self._per_group
        parts = qkv.view(len(qkv), -1, self._width).split([heads, self._key_heads, self._key_heads], dim=1)
        return parts[0].unflatten(1, (self._key_heads, self._per_group)), parts[1], parts[2]

    def _heads(self, tokens: int, name: object, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """Room for q, k and v as attention wants them, with slack for its last block."""
        rest = {"q": (self._per_group, self._width), "k": (self._width,), "v": (self._width,)}
        return tuple(
            self._workspace.heads((part, name), self._key_heads, tokens, *shape, slack=ROUND_ROWS_TO, dtype=dtype)
            for part, shape in rest.items()
        )


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Write `x` turned by its positions (Su et al. 2021, section 3.4.2), in the halves that Llama pairs, (tokens, ..., width) into `out`; `cos` and `sin` are (tokens, width)."""
    return _turn(x, cos, sin, -1, out)


def _rotate_back(gradient: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Write the gradient of `_rotate`'s x into `out`, given that of its result."""
    half = sin.shape[-1] // 2
    return _turn(gradient, cos, torch.cat([sin[:, half:], sin[:, :half]], -1), 1, out)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int, out: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    cos, sin = (one.view(len(x), *[1] * (x.dim() - 2), -1) for one in (cos, sin))
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=-sign)
    return out


def _parts(layer: nn.Module) -> LinearParts:
    parts = linear_parts(layer)
    assert parts is not None  # checked by `replace_decoder_layers`
    return parts
