"""Base models, in 16 or 4 bits."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from finetune import params
from finetune.device import device
from finetune.errors import UserError
from finetune.kernels.attention import ATTENTION_NAME


def load_base(
    folder: Path | str, dtype: torch.dtype, quantization: params.Quantization | None = None
) -> PreTrainedModel:
    """The causal language model in `folder` on the device at hand.

    Weights have `dtype`; with `quantization` the linear layers hold 4-bit blocks (QLoRA, Dettmers et
    al. 2023, section 3) and multiply in `dtype`. Raises UserError if there is no causal model, or one
    whose attention can't be replaced by `kernels.attention.attend`.
    """
    bits = quantization and BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.type,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=dtype,
    )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            quantization_config=bits,
            device_map={"": device()},
            attn_implementation=ATTENTION_NAME,
            local_files_only=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no causal language model can be loaded: {str(error).splitlines()[0]}") from None
    if not model._supports_attention_backend:  # it would ignore ours, and let packed sequences see each other
        raise UserError(
            f"model.source: {model.config.model_type} models bring an attention of their own, which can't be replaced "
            f"by the packed one; choose another"
        )
    return model


def copy_from_file(model: nn.Module) -> None:
    """Weights that aren't quantised are views of the mapped file, which stays in memory as long as one of them lives."""
    for parameter in model.parameters():
        if getattr(parameter, "quant_state", None) is None:
            parameter.data = parameter.data.clone()


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Trainable and total parameters; a 4-bit weight counts as the weights it holds."""
    trainable_count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(_weights_held(p) for p in model.parameters())
    return trainable_count, total


def _weights_held(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()
