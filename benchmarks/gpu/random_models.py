"""Models with random weights, made on the device layer by layer: the 16-bit weights of one matrix at a time at most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from finetune import params
from finetune.device import device
from finetune.kernels.attention import ATTENTION_NAME
from finetune.models.loading import keep_end_tokens_alone

if TYPE_CHECKING:
    from bitsandbytes.nn import Linear4bit

    from .shapes import Shape


@torch.no_grad()
def make(shape: Shape, dtype: torch.dtype, quantization: params.Quantization | None = None) -> PreTrainedModel:
    """A model of `shape`, weights in `dtype`; with `quantization` its linear layers in 4 bits, rounded to the nearest.

    What `models.loading.load_base` gives for a folder with such weights.
    """
    torch.manual_seed(0)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            shape.config(), dtype=dtype, attn_implementation=ATTENTION_NAME
        )
    head = model.get_output_embeddings()
    if quantization:
        linear = [one for one in model.named_modules() if isinstance(one[1], nn.Linear | Conv1D) and one[1] is not head]
        for name, module in linear:
            model.set_submodule(name, _in_4_bits(module, dtype, quantization))
        of_transformers: Any = model
        of_transformers.is_loaded_in_4bit = True  # asks peft for its own 4-bit layers
    modules: Any = model.modules()
    for module in modules:
        _fill(model, module)
    model.tie_weights()
    keep_end_tokens_alone(model)
    return model


def _fill(model: PreTrainedModel, module: nn.Module) -> None:
    """Give the module's own weights memory, and values as its family draws them."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if any(tensor.is_meta for tensor in own):
        module.to_empty(device=device(), recurse=False)
        for parameter in module.parameters(recurse=False):
            parameter.normal_(std=0.02)  # where the family's own way knows no such module
        model._init_weights(module)


def _in_4_bits(module: Any, dtype: torch.dtype, settings: params.Quantization) -> Linear4bit:
    from bitsandbytes.functional import quantize_4bit
    from bitsandbytes.nn import Linear4bit, Params4bit

    rows, columns = module.weight.shape[::-1] if isinstance(module, Conv1D) else module.weight.shape
    biased = module.bias is not None
    made = Linear4bit(columns, rows, biased, dtype, settings.double_quant, settings.type, device="meta")
    weight = torch.randn(rows, columns, dtype=dtype, device=device()).mul_(0.02)
    codes, state = quantize_4bit(
        weight, blocksize=settings.block_size, compress_statistics=settings.double_quant, quant_type=settings.type
    )
    made.weight = Params4bit(
        codes,
        quant_state=state,
        blocksize=settings.block_size,
        compress_statistics=settings.double_quant,
        quant_type=settings.type,
        module=made,
        bnb_quantized=True,
    )
    made.quant_state = state
    made.support_avx512bf16_for_cpu = False  # as `models.loading` has it
    if biased:
        made.bias = nn.Parameter(torch.zeros(rows, dtype=dtype, device=device()))
    return made


def tokenizer(words: int) -> PreTrainedTokenizerFast:
    """One that has a name for each of so many ids, which is all that a trainer asks of it here."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    end = "<|endoftext|>"
    inner = Tokenizer(WordLevel({end: 0} | {f"t{number}": number for number in range(1, words)}, unk_token=end))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end, bos_token=end, pad_token=end)
