"""What each method makes of a base model: adapters over frozen weights, or every parameter trained."""

import re
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune import params
from finetune.device import compute_dtype, device
from finetune.errors import UserError, first_line
from finetune.kernels.decoder import replace_decoder_layers
from finetune.kernels.layers import replace_layers
from finetune.kernels.lora import fuse
from finetune.methods import Method
from finetune.models import rounding_error
from finetune.models.base import Base
from finetune.models.loading import copy_from_file, layer_stack, load_base

ADAPTABLE = (nn.Linear, Conv1D, nn.Embedding)
"""Modules that adapters are put on here."""


def trainable(
    base: Base, method: Method, lora: params.Lora, tokens: int = 0, *, shard: bool = False
) -> PreTrainedModel | PeftModel:
    """The model `base`, which a quantized method has in 4 bits, as `method` trains it.

    Memory is laid out for micro-batches of `tokens` tokens, and again if one is longer. A model to `shard` stays on the
    CPU, since it may be larger than any device, and keeps its own layers, which can be split.

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
        rounding_error.start(model, folder)
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
    _check_names(base, lora.target_modules)
    try:
        model = get_peft_model(base, config)
    except (ValueError, TypeError, AttributeError) as error:  # as peft happens to find out
        raise UserError(f"lora.target_modules: {first_line(error)}") from None
    _check_head_and_rank(model, lora)
    return model


def _check_names(model: PreTrainedModel, targets: str | list[str]) -> None:
    """Raise UserError if a name or pattern of `targets` fits no module of `model`, or one that has no matrix.

    peft raises only if none of them fits, and ignores the rest.
    """
    if targets == "all-linear":
        return
    for target in [targets] if isinstance(targets, str) else targets:
        modules = [(name, module) for name, module in model.named_modules() if name]
        meant = [module for name, module in modules if _is_meant(name, target, isinstance(targets, str))]
        if not meant:
            raise UserError(f"lora.target_modules: the model has no module {target!r}; there are {_kinds(model)}")
        odd = [type(module).__name__ for module in meant if not isinstance(module, ADAPTABLE)]
        if odd:
            raise UserError(
                f"lora.target_modules: {target!r} is a {odd[0]}, which has no matrix to adapt; there are "
                f"{_kinds(model)}"
            )


def _check_head_and_rank(model: PeftModel, lora: params.Lora) -> None:
    """Raise UserError if the head of `model` is adapted, or if `lora.r` is more than any adapted matrix can use."""
    adapted = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    head = model.get_output_embeddings()
    if any(layer is head for layer in adapted.values()):
        raise UserError(
            "lora.target_modules: takes in the head over the vocabulary, which is never adapted here; leave it out"
        )
    widest = max(map(_most_rank, adapted.values()))
    if lora.r > widest:
        raise UserError(f"lora.r: {lora.r} is more than the rank of any adapted matrix, {widest} at most; lower it")


def _most_rank(layer: BaseTunerLayer) -> int:
    """The smaller side of the matrix that `layer` adapts, or of the largest of its matrices."""
    return max(min(_shape(weight)) for weight in layer.get_base_layer().parameters() if len(_shape(weight)) > 1)


def _shape(weight: nn.Parameter) -> tuple[int, ...]:
    """The last two dimensions: experts lie one on another, and 4 bits in blocks."""
    state = getattr(weight, "quant_state", None)
    return tuple(weight.shape if state is None else state.shape)[-2:]


def _is_meant(name: str, target: str, is_pattern: bool) -> bool:
    """As peft compares: text as a pattern of the whole path; an entry of a list as the path, or its end."""
    if not is_pattern:
        return name == target or name.endswith(f".{target}")
    try:
        return re.fullmatch(target, name) is not None
    except re.error as error:
        raise UserError(f"lora.target_modules: {target!r} is no regular expression ({error})") from None


def _kinds(model: PreTrainedModel) -> str:
    """The names of `model`'s linear layers, each once, without the head."""
    head = model.get_output_embeddings()
    names = {
        name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }
    return ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
