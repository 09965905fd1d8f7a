"""What each method makes of a base model: adapters over frozen weights, or every parameter trained."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune import params
from finetune.device import compute_dtype, device, is_out_of_memory
from finetune.errors import UserError
from finetune.kernels.decoder import replace_decoder_layers
from finetune.kernels.layers import replace_layers
from finetune.kernels.lora import fuse
from finetune.methods import METHODS, Method
from finetune.models import lost
from finetune.models.base import copy_from_file, layer_stack, load_base
from finetune.models.ends import add_end_tokens
from finetune.models.fingerprint import check_base
from finetune.models.four_bits import in_4_bits
from finetune.models.supported import first_line, form_in_4_bits, read_config
from finetune.models.targets import check_head_and_rank, check_names
from finetune.sources.contents import check_adapter


def trainable(
    folder: Path, method: Method, lora: params.Lora, tokens: int = 0, *, shard: bool = False
) -> PreTrainedModel | PeftModel:
    """The base model in `folder`, which a quantized method has in 4 bits, as `method` trains it.

    Memory is laid out for passes of `tokens` tokens, and anew if one is longer. What is to `shard` stays on the CPU, as
    no device needs to have room for all of it, and its layers in the form that can be taken apart.

    AdamW's small steps are lost in the 8 bits of a bf16 mantissa: adapters are fp32, and for bf16
    weights `SplitAdamW` keeps the rest. fp16 weights can't be kept so; they are trained as fp32.
    Raises UserError if the model can't be loaded, or `lora.target_modules` fits none of its layers.
    """
    stored = form_in_4_bits(folder, read_config(folder))
    if stored and not method.quantized:
        raise UserError(
            f"method: {method.name} trains 16-bit weights, and those in {folder} are in 4 bits already; choose qlora, "
            f"or the model's 16-bit weights"
        )
    base = load_base(folder, weights_dtype(method), place=torch.device("cpu") if shard else device())
    return as_trained(base, method, lora, tokens, folder=folder, shard=shard)


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


def load_tuned(folder: Path, facts: dict, base: Path | str | None = None) -> PreTrainedModel | PeftModel:
    """The fine-tuned model that `saved.save` wrote to `folder`, ready to generate.

    An adapter gets its base from where it was trained, or from the folder `base`; a QLoRA adapter
    gets it in the 4 bits that it was trained on. Adapter weights are cast to the dtype of the
    matrix products, as autocast did in training.
    """
    below = trained_over(facts, base)
    model = _with_adapter(folder, facts, below) if below else load_base(folder, compute_dtype())
    add_end_tokens(model, facts.get("end_tokens") or [])
    return model


def trained_over(facts: dict, base: Path | str | None = None) -> Path | None:
    """The folder of the base below the adapter of a checkpoint with these `facts`, as `load_tuned` finds it; None if all
    parameters were trained."""
    method = METHODS[facts["method"]]
    if not method.adapters:
        return None
    folder = Path(base or facts["base"])
    return in_4_bits(folder) if method.quantized else folder


def _with_adapter(folder: Path, facts: dict, base: Path) -> PeftModel:
    check_base(folder, facts, base)
    check_adapter(folder)
    model = load_base(base, compute_dtype())
    try:
        # peft would widen the adapters to fp32, and every product of every token would cast them back.
        tuned = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
    except Exception as error:  # a file that is cut short, or of other shapes
        if is_out_of_memory(error):
            raise
        raise UserError(f"{folder}: the adapter can't be loaded: {first_line(error)}; train it again") from None
    fuse(tuned)
    return tuned
