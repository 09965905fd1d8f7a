"""An adapter merged into its base: W + s B A, in 32 bits, kept in 16.

peft's own merge of a base in 4 bits rounds the sum to 4 bits again, and so loses most of what was learnt
(https://github.com/huggingface/peft/issues/2321). Here the sum stays in 16 bits, and is rounded once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune.device import device
from finetune.errors import UserError, first_line
from finetune.models.base import Base
from finetune.models.checkpoint import PEFT_PREFIX, Checkpoint
from finetune.models.loading import add_end_tokens, load_base
from finetune.models.supported import model_class
from finetune.sources.contents import check_adapter


def merged(checkpoint: Checkpoint, base: Base) -> PreTrainedModel:
    """The adapter `checkpoint` merged into `base`, which may be in 4 bits: a plain model of 16 bits.

    Raises UserError if the adapter can't be put over that base.
    """
    adapter = checkpoint.folder
    check_adapter(adapter)
    dtype = _kept_dtype(base)
    model, exact = _plain(base, dtype)
    try:
        tuned = PeftModel.from_pretrained(model, adapter)
    except Exception as error:  # a file that is cut short, or of other shapes
        raise UserError(f"{adapter}: the adapter doesn't go over {base}: {first_line(error)}") from None
    for name, layer in tuned.named_modules():
        if isinstance(layer, LoraLayer):
            _merge(layer, exact.get(name.removeprefix(PEFT_PREFIX)), dtype)
    result = cast(PreTrainedModel, tuned.unload())
    add_end_tokens(result, checkpoint.end_tokens)
    return result


def whole(checkpoint: Checkpoint) -> PreTrainedModel:
    """The fully fine-tuned model `checkpoint` in 16 bits."""
    base = Base(checkpoint.folder)
    model = load_base(base, _kept_dtype(base))
    add_end_tokens(model, checkpoint.end_tokens)
    return model


def _kept_dtype(base: Base) -> torch.dtype:
    """The dtype of `base` if it has 16 bits, else bf16, which has the range of 32 bits."""
    dtype = base.config.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else torch.bfloat16


def _plain(base: Base, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, Callable[[], torch.Tensor]]]:
    """The model `base` with plain layers of `dtype`; and of those that are in 4 bits there what gives their weight
    in 32 bits, (out, in), by name."""
    if not base.bits:
        return load_base(base, dtype), {}
    rounded = load_base(base, torch.float32)  # the dtype in which its weights come out of their 4 bits
    exact = {name: _exact(module.weight) for name, module in rounded.named_modules() if isinstance(module, Linear4bit)}
    config = copy.deepcopy(base.config)
    del config.quantization_config
    kind = cast("type[PreTrainedModel]", model_class(config))
    with torch.device("meta"):
        frame = kind(config)
    weights = {}
    for name, weight in rounded.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if name.split(".weight.")[0] in exact:  # the scales of a weight, under its name
            continue
        if owner not in exact:
            weights[name] = weight.to(dtype)
        else:
            full = exact[owner]() if leaf == "weight" else weight
            turned = leaf == "weight" and isinstance(frame.get_submodule(owner), Conv1D)
            weights[name] = (full.t() if turned else full).to(dtype).contiguous()
    model = kind.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
    model.to(device())  # type: ignore[arg-type]  # transformers' `wraps`
    model.generation_config = rounded.generation_config
    return model, exact


def _exact(weight: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: dequantize_4bit(weight.data, weight.quant_state).float()  # type: ignore[attr-defined]


@torch.no_grad()
def _merge(layer: LoraLayer, exact: Callable[[], torch.Tensor] | None, dtype: torch.dtype) -> None:
    """Merge into one layer, whose base weight is `exact` where that is more than the layer holds."""
    base = layer.get_base_layer()
    if isinstance(layer, ParamWrapper):  # several experts' matrices in one tensor, which has no name of its own here
        layer.merge(safe_merge=True)
        return
    held = cast(nn.Parameter, base.weight)
    if exact is not None:
        held.data = exact().t() if isinstance(base, Conv1D) else exact()
    held.data = held.data.float()
    layer.merge(safe_merge=True)
    held.data = held.data.to(dtype).contiguous()
