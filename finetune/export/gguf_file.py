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
from finetune.export.gguf_tokenizer import Vocabulary, vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_ELSE = "export merged, and convert that folder by llama.cpp's convert_hf_to_gguf.py"


@dataclass(frozen=True)
class Form:
    """A form of the weights: that of matrices, and that of the two over the vocabulary."""

    matrices: GGMLQuantizationType
    vocabulary: GGMLQuantizationType
    file: LlamaFileType


TYPES = {
    "f16": Form(GGMLQuantizationType.F16, GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": Form(GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    # llama.cpp's own quantiser spares the vocabulary's matrices as well: each of their rows is a whole token.
    "q4_0": Form(GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q4_0),
}
"""By the name that `--type` has for it."""


@dataclass(frozen=True)
class Architecture:
    """How GGUF has a family of models."""

    arch: MODEL_ARCH
    head_rows_apart: bool = False
    """The two halves of a head's rows, which a rotation turns together, are stored row by row in turn."""


ARCHITECTURES = {
    "llama": Architecture(MODEL_ARCH.LLAMA, head_rows_apart=True),
    "qwen2": Architecture(MODEL_ARCH.QWEN2),
}
"""By model_type: those whose files were read back by transformers and answered as before."""


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
    form: Form,
    path: Path,
    *,
    name: str,
    end_tokens: list[int],
) -> None:
    """Write `model`, which `check` has let pass, to `path`. `name` is what programs show.

    Vectors stay in 32 bits. A matrix whose rows don't fill blocks of the form is kept in F16. Raises UserError if a
    weight is beyond what 16 bits hold.
    """
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    words = vocabulary(tokenizer, config.vocab_size)
    writer = GGUFWriter(path, architecture.arch.name.lower())
    writer.add_name(name)
    writer.add_file_type(form.file)
    writer.add_quantization_version(2)
    _add_shape(writer, config)
    _add_words(writer, words, tokenizer, end_tokens)
    for tensor, weights in _tensors(model, architecture):
        kind = _kind(tensor, weights, form)
        if not numpy.isfinite(weights).all() or numpy.abs(weights).max() > numpy.finfo(numpy.float16).max:
            raise UserError(f"gguf: {tensor} holds a number beyond what 16 bits take; {_ELSE}")
        writer.add_tensor(tensor, quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_words(
    writer: GGUFWriter, words: Vocabulary, tokenizer: PreTrainedTokenizerBase, end_tokens: list[int]
) -> None:
    words.write(writer, tokenizer, end_tokens)
    writer.add_vocab_size(len(words.tokens))


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
    """Each weight of the model by its name in GGUF, in fp32 as (out, in)."""
    config = model.config
    names = get_tensor_name_map(architecture.arch, config.num_hidden_layers)
    for name, weight in model.named_parameters():  # tied ones once: a missing head is the embedding
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(f"gguf: there is no place for the weight {name}; {_ELSE}")
        data = weight.detach().float()
        if architecture.head_rows_apart and (heads := _heads(name, config)):
            data = _in_turn(data, heads)
        yield found, numpy.ascontiguousarray(data.cpu().numpy())


def _heads(name: str, config: PreTrainedConfig) -> int:
    """Heads of the projection whose weight this is, if a rotation turns them."""
    ends: dict[str, Callable[[], int]] = {
        ".q_proj.weight": lambda: config.num_attention_heads,
        ".k_proj.weight": lambda: config.num_key_value_heads,
    }
    return next((count() for end, count in ends.items() if name.endswith(end)), 0)


def _in_turn(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """`weight` (heads * size, in) with the rows of each head's halves in turn, as llama.cpp's converter permutes them."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _kind(name: str, weights: numpy.ndarray, form: Form) -> GGMLQuantizationType:
    if weights.ndim == 1:
        return GGMLQuantizationType.F32
    kind = form.vocabulary if name in ("token_embd.weight", "output.weight") else form.matrices
    block = GGML_QUANT_SIZES[kind][0]
    return kind if weights.shape[-1] % block == 0 else GGMLQuantizationType.F16
