"""The sizes of a model as a method trains it, which no setting of a pass changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from finetune import params
from finetune.kernels.adamw import state_bytes
from finetune.kernels.decoder import has_form
from finetune.kernels.decoder_layer import DecoderLayer
from finetune.kernels.workspace import Workspace
from finetune.methods import Method
from finetune.models.loading import layer_stack

MAPPED = 32 * 2**20
"""glibc's largest threshold of blocks that get a mapping of their own (mallopt(3), M_MMAP_THRESHOLD)."""
_NESTED = 256
"""Constants that share a constant, where they are quantised too (QLoRA, Dettmers et al. 2023, section 3)."""


@dataclass(frozen=True)
class Widths:
    """Of a Llama's layer."""

    h: int
    """The model's."""
    q: int
    """All queries' of a token."""
    qkv: int
    """Those of its queries, keys and values."""
    m: int
    """The MLP's."""
    heads: int
    ranks: int
    """Of the layer's adapters, all together."""


@dataclass(frozen=True)
class Sizes:
    """Bytes, where nothing else is said."""

    model: Any
    """The `frame`."""
    device: str
    """torch's type of it."""
    item: int
    """Of a number of the matrix products."""
    weights: int
    """The frozen ones, 4-bit blocks with their constants; all of them where all are trained."""
    adapters: int
    gradients: int
    freed_gradients: int
    """Those of the step before that a CPU's allocator holds on to: glibc gives back at once what is above `MAPPED`."""
    optimizer: int
    head: torch.Tensor
    """The head's weight, (words, width)."""
    embedding_gradient: int
    """Dense, and made before it is added to the head's, where both are one weight and trained."""
    rounded: bool
    """The frozen linear layers are in 4 bits."""
    dequantised: int
    """Of all those layers' weights in 16 bits."""
    matrix: int
    """The largest matrix that is de-quantised at a time, in 16 bits."""
    widths: tuple[Widths, ...]
    """Of the layers that go as steps in shared memory; none where the model's own run."""
    copies: int
    """Of the adapters in the products' dtype, in such steps."""


def sizes(model: Any, method: Method, settings: params.Quantization, device: str, *, shard: bool) -> Sizes:
    """Of the `frame` of a model; what is to `shard` keeps its own layers."""
    trained = [one for one in model.parameters() if one.requires_grad]
    layers, head = layer_stack(model), model.get_output_embeddings().weight
    steps = _steps(model, layers) if device == "cpu" and not shard else []
    linears = [linear for step in steps for linear in step.linears]
    item = head.element_size()
    rounded = _linear_weights(model) if method.quantized else []
    return Sizes(
        model=model,
        device=device,
        item=item,
        weights=_weights(model, {id(one) for one in rounded}, settings),
        adapters=sum(one.nbytes for one in trained) if isinstance(model, PeftModel) else 0,
        gradients=sum(one.nbytes for one in trained),
        freed_gradients=sum(one.nbytes for one in trained if one.nbytes < MAPPED) if device == "cpu" else 0,
        optimizer=sum(one.numel() * state_bytes(one.dtype) for one in trained),
        head=head,
        embedding_gradient=_embedding_gradient(model, head),
        rounded=method.quantized,
        dequantised=sum(one.nbytes for one in rounded),
        matrix=max(
            (one.shape[0] * one.shape[1] * item for one in linears),
            default=max((one.nbytes for one in rounded), default=0),
        ),
        widths=tuple(_widths(step, layer) for step, layer in zip(steps, layers, strict=False)),
        copies=sum(one.rank * sum(one.shape) for one in linears) * item,
    )


def _steps(model: Any, layers: list[nn.Module]) -> list[DecoderLayer]:
    """The layers as `kernels.decoder.replace_decoder_layers` makes them steps; none if it leaves them as they are."""
    by_silu = getattr(model.config, "hidden_act", None) in ("silu", "swish")
    if not layers or not by_silu or not all(has_form(layer) for layer in layers):
        return []
    workspace = Workspace(torch.device("meta"))
    return [DecoderLayer(layer, number, workspace) for number, layer in enumerate(layers)]


def _widths(step: DecoderLayer, layer: Any) -> Widths:
    qkv, o, _, down = step.linears
    h, q = o.shape
    ranks = sum(one.rank for one in step.linears)
    return Widths(h, q, qkv.shape[0], down.shape[1], q // layer.self_attn.head_dim, ranks)


def _weights(model: Any, rounded: set[int], settings: params.Quantization) -> int:
    adapted = isinstance(model, PeftModel)
    held = [one for one in model.parameters() if not (adapted and one.requires_grad)]
    return sum(_in_4_bits(one.numel(), settings) if id(one) in rounded else one.nbytes for one in held)


def _linear_weights(model: Any) -> list[torch.Tensor]:
    """Of the linear layers that are rounded to 4 bits: all but the head, and the adapters."""
    head = model.get_output_embeddings()
    modules = (one for one in model.modules() if type(one) in (nn.Linear, Conv1D) and one is not head)
    return [one.weight for one in modules if not one.weight.requires_grad]


def _in_4_bits(weights: int, settings: params.Quantization) -> int:
    blocks = -(-weights // settings.block_size)
    constants = blocks + 4 * -(-blocks // _NESTED) if settings.double_quant else 4 * blocks
    return weights // 2 + constants


def _embedding_gradient(model: Any, head: torch.Tensor) -> int:
    embedding = model.get_input_embeddings().weight
    return embedding.nbytes if embedding.requires_grad and embedding is head else 0
