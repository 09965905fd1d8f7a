"""What each method makes of a base model: adapters over frozen weights, or every parameter trained."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune import params
from finetune.device import compute_dtype, device
from finetune.errors import UserError, first_line
from finetune.kernels.decoder import replace_decoder_layers
from finetune.kernels.layers import replace_layers
from finetune.kernels.lora import fuse
from finetune.methods import Method
from finetune.models import lost
from finetune.models.base import Base
from finetune.models.loading import copy_from_file, layer_stack, load_base
from finetune.models.targets import check_head_and_rank, check_names


def trainable(
    base: Base, method: Method, lora: params.Lora, tokens: int = 0, *, shard: bool = False
) -> PreTrainedModel | PeftModel:
    """The model `base`, which a quantized method has in 4 bits, as `method` trains it.

    Memory is laid out for passes of `tokens` tokens, and anew if one is longer. What is to `shard` stays on the CPU, as
    no device needs to have room for all of it, and its layers in the form that can be taken apart.

    AdamW's small steps are lost in the 8 bits of a bf16 mantissa: adapters are fp32, and for bf16
    weights `SplitAdamW` keeps the rest. fp16 weights can't be kept so; they are trained as fp32.
    Raises UserError if the model can't be loaded, or `lora.target_modules` fits none of its layers.
    """
    if base.bits and not method.quantized:
        raise UserError(
            f"method: {method.name} trains 16-bit weights, and those in {base} are in 4 bits already; choose qlora, "
            f"or the model's 16-bit weights"
        )
    model = load_base(base, weights_dtype(method), place=torch.device("cpu") if shard else device())
    return as_trained(model, method, lora, tokens, folder=base.folder, shard=shard)


def weights_dtype(method: Method) -> torch.dtype:
    """The dtype of the weights that `method` starts from, of those that aren't in 4 bits."""
    if method.adapters:
        return compute_dtype()
    return torch.bfloat16 if compute_dtype() == torch.bfloat16 else torch.float32


def as_trained(
    base: PreTrainedModel,
    method: Method,
    lora: params.Lora,
    tokens: int = 0,
    *,
    folder: Path | None = None,
    shard: bool = False,
) -> PreTrainedModel | PeftModel:
    """`base`, loaded with weights of `weights_dtype` (or in 4 bits), as `trainable` gives it; `folder` is where it lies.

    Without a folder the adapters of a quantized method start at zero.
    """
    model: PreTrainedModel | PeftModel = base
    if method.adapters:
        model = _adapted(base, method, lora, folder)
    else:
        copy_from_file(base)
    replace_layers(model)
    if not shard:
        replace_decoder_layers(model, layer_stack(model), tokens)
    return model


def _adapted(base: PreTrainedModel, method: Method, lora: params.Lora, folder: Path | None) -> PeftModel:
    model = with_new_adapters(base, method, lora)
    copy_from_file(base)
    if folder and method.quantized and lora.start == "rounding_error":
        lost.start(model, folder)
    fuse(model)
    return model


def with_new_adapters(base: PreTrainedModel, method: Method, lora: params.Lora) -> PeftModel:
    """`base`, frozen, below adapters that change nothing yet. Raises UserError if `lora` doesn't fit it."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft scales by any number
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        # GPT-2's layers keep their weights as (inputs, outputs). peft finds that out as well, with a warning.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
        **method.lora_options,
    )
    base.requires_grad_(False)
    check_names(base, lora.target_modules)
    try:
        model = get_peft_model(base, config)
    except (ValueError, TypeError, AttributeError) as error:  # as peft happens to find out
        raise UserError(f"lora.target_modules: {first_line(error)}") from None
    check_head_and_rank(model, lora)
    return model
