"""A model as it is trained, without its weights: on PyTorch's meta device tensors have shapes and no memory."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from finetune import params, places
from finetune.errors import UserError
from finetune.kernels.layers import replace_layers
from finetune.kernels.linear_parts import is_lora, plain_adapter
from finetune.kernels.lora import fuse
from finetune.methods import Method
from finetune.models.adapters import with_new_adapters
from finetune.models.base import Base
from finetune.planner import attention
from finetune.sources.catalogue import CATALOGUE

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    | {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192}
    | {"tie_word_embeddings": True},
    "distilgpt2": {"model_type": "gpt2", "n_embd": 768, "n_layer": 6, "n_head": 12, "n_positions": 1024}
    | {"vocab_size": 50257},
}
"""What config.json says of the catalogue's models, for a plan before one is fetched."""


def config_of(source: str, given: str | None = None) -> tuple[str, PreTrainedConfig]:
    """What the model of a plan is called, and its config: of the folder or config.json `given`, of the pipeline's base
    model if that is of `source` (model.source), else of the catalogue or of the folder `source`.

    Raises UserError if there is none yet, or none that can be trained here.
    """
    if given is not None and given not in CATALOGUE["model"]:
        return given, Base(_folder(given)).config
    name = given or source
    base = Base(places.BASE)
    if (base.folder / "config.json").exists() and base.source["source"] == name:
        return name, base.config
    if name in SHAPES:
        return name, AutoConfig.for_model(**SHAPES[name])
    located = Path(places.of_source(name)).expanduser()
    if (located / "config.json").exists():
        return name, Base(located).config
    raise UserError(
        f"model.source: {name} isn't here yet; run `dvc repro fetch@model` first, or give --model with a folder or config.json"
    )


def _folder(given: str) -> Path:
    path = places.given(given)
    if path.is_file() and path.name == "config.json":
        return path.parent
    if not path.is_dir():
        raise UserError(
            f"--model: {given} is no folder with a config.json, no config.json, and none of {', '.join(CATALOGUE['model'])}"
        )
    return path


def frame(
    config: PreTrainedConfig, method: Method, lora: params.Lora, dtype: torch.dtype, device: str
) -> PreTrainedModel | PeftModel:
    """The model of `config` as `models.adapters.trainable` makes it, in `dtype`, on the meta device; 4-bit weights are
    in 16 bits. Raises UserError as that does if `lora` doesn't fit the model."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.NAMES[device])
        if method.adapters:
            model = with_new_adapters(model, method, lora)
            fuse(model)
    replace_layers(model)
    return model.train()


def as_autocast_has_it(model: Any, dtype: torch.dtype) -> None:
    """Cast the adapters that peft's own code runs (DoRA, dropout) to `dtype`, for autocast, which does so in training, knows
    no meta device. Sizes must be taken before."""
    for layer in model.modules():
        if is_lora(layer) and plain_adapter(layer) is None:
            for parameter in layer.parameters():
                parameter.data = parameter.data.to(dtype)
