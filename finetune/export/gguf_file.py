"""A model as a GGUF file: what llama.cpp, Ollama, LM Studio and others run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from gguf import (
    GGML_QUANT_SIZES,
    MODEL_ARCH,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)
from gguf.quants import quantize

from finetune.errors import UserError
from finetune.export.tokenizer import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_ELSE = "export merged, and convert that folder by llama.cpp's convert_hf_to_gguf.py"


@dataclass(frozen=True)
class TensorTypes:
    """The types in which a file keeps its weights."""

    matrices: GGMLQuantizationType
    vocabulary: GGMLQuantizationType
    """For the two matrices over the vocabulary."""
    file: LlamaFileType


TYPES = {
    "f16": TensorTypes(GGMLQuantizationType.F16, GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": TensorTypes(GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    # Like llama.cpp's quantiser, this rounds the vocabulary's matrices less: each of their rows is a whole token.
    "q4_0": TensorTypes(GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q4_0),
}
"""By their names for `--type`."""


@dataclass(frozen=True)
class Architecture:
    """How GGUF stores a family of models."""

    arch: MODEL_ARCH
    head_rows_apart: bool = False
    """The rows of a head's two halves, which rotary embedding pairs, are interleaved."""


ARCHITECTURES = {
    "llama": Architecture(MODEL_ARCH.LLAMA, head_rows_apart=True),
    "qwen2": Architecture(MODEL_ARCH.QWEN2),
}
"""By model_type: the families whose files transformers read back with the same answers."""


def check(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError if a model of this config and tokenizer can't be written as GGUF here."""
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise UserError(f"gguf: {kind} models can't be written here ({', '.join(ARCHITECTURES)} can); {_ELSE}")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"gguf: this model stretches its positions ({rope['rope_type']}); {_ELSE}")
    for setting in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if getattr(config, setting, False):
            raise UserError(f"gguf: this model has {setting}; {_ELSE}")
    vocabulary(tokenizer, config.vocab_size)


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    types: TensorTypes,
    path: Path,
    *,
    name: str,
    end_tokens: list[int],
) -> None:
    """Write `model`, which `check` has accepted, to `path`. `name` is the name that programs show.

    Vectors stay in 32 bits. A matrix whose rows don't fill the type's blocks is kept in F16. Raises UserError if a
    weight is beyond the range of 16 bits.
    """
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    words = vocabulary(tokenizer, config.vocab_size)
    writer = GGUFWriter(path, architecture.arch.name.lower())
    writer.add_name(name)
    writer.add_file_type(types.file)
    writer.add_quantization_version(2)
    _add_shape(writer, config)
    words.write(writer, tokenizer, end_tokens)
    writer.add_vocab_size(len(words.tokens))
    for tensor, weights in _tensors(model, architecture):
        kind = _type_of(tensor, weights, types)
        if not numpy.isfinite(weights).all() or numpy.abs(weights).max() > numpy.finfo(numpy.float16).max:
            raise UserError(f"gguf: {tensor} holds a number beyond what 16 bits take; {_ELSE}")
        writer.add_tensor(tensor, quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    heads = config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(heads)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head_size)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)


def _tensors(model: PreTrainedModel, architecture: Architecture) -> Iterator[tuple[str, numpy.ndarray]]:
    """Name in GGUF and value of each of the model's weights, in fp32 as (out, in)."""
    config = model.config
    names = get_tensor_name_map(architecture.arch, config.num_hidden_layers)
    for name, weight in model.named_parameters():  # a tied head is left out: GGUF then takes the embedding
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(f"gguf: there is no place for the weight {name}; {_ELSE}")
        data = weight.detach().float()
        if architecture.head_rows_apart and (heads := _heads(name, config)):
            data = _interleaved(data, heads)
        yield found, numpy.ascontiguousarray(data.cpu().numpy())


def _heads(name: str, config: PreTrainedConfig) -> int:
    """The number of heads in a weight that rotary embedding applies to, 0 for any other."""
    ends: dict[str, Callable[[], int]] = {
        ".q_proj.weight": lambda: config.num_attention_heads,
        ".k_proj.weight": lambda: config.num_key_value_heads,
    }
    return next((count() for end, count in ends.items() if name.endswith(end)), 0)


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """`weight` (heads * size, in) with the rows of each head's halves interleaved, as llama.cpp's converter does."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _type_of(name: str, weights: numpy.ndarray, types: TensorTypes) -> GGMLQuantizationType:
    if weights.ndim == 1:
        return GGMLQuantizationType.F32
    kind = types.vocabulary if name in ("token_embd.weight", "output.weight") else types.matrices
    block = GGML_QUANT_SIZES[kind][0]
    return kind if weights.shape[-1] % block == 0 else GGMLQuantizationType.F16
