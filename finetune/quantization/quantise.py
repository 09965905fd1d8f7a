"""Make the 4-bit base model: its layers rounded, in the form in which bitsandbytes and transformers save and load it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer, HfQuantizer

from finetune import params
from finetune.device import compute_dtype
from finetune.errors import UserError
from finetune.files import copy_into
from finetune.models import rounding_error
from finetune.models.base import Base
from finetune.models.loading import bits_and_bytes, load_base
from finetune.quantization.calibration import can_be_walked
from finetune.quantization.rounding import Rounded, rounded_by_gptq, rounded_nearest
from finetune.sources.contents import model_files


def quantise(base: Base, rows: list[list[int]], settings: params.Quantization, target: Path) -> str:
    """Write the model `base` to `target` in four bits, with its rounding error and the files next to the weights.

    `rows` are the token ids of the examples that gptq looks at. Returns the calibration that was used: a model whose
    layers don't simply feed one another is rounded to the nearest. Raises UserError if a layer's inputs are no multiple
    of the block size.
    """
    model = load_base(base, compute_dtype())
    model.eval().requires_grad_(False)
    quantizer = AutoHfQuantizer.from_config(bits_and_bytes(settings, compute_dtype()), pre_quantized=False)
    empty = _empty_layers(model, quantizer)
    _check_blocks(empty, settings.block_size)
    calibration = settings.calibration
    if calibration == "gptq" and not can_be_walked(model, rows[0]):
        calibration = "nearest"
    errors = {}
    for name, result in _rounded(model, list(empty), rows if calibration == "gptq" else [], settings):
        _put(empty[name], result)
        errors[name] = result.error
        if len(errors) % 30 == 0:
            print(f"{len(errors)} of {len(empty)} layers in 4 bits", flush=True)
    _replace(model, empty, quantizer)
    model.save_pretrained(target)
    rounding_error.save(errors, target)
    _copy_without_weights(base.folder, target)
    return calibration


def _empty_layers(model: PreTrainedModel, quantizer: HfQuantizer) -> dict[str, Linear4bit]:
    """By name, the 4-bit layers that transformers would put into `model`, on the meta device, without weights."""
    with torch.device("meta"):
        empty = type(model)(copy.deepcopy(model.config))
    quantizer.preprocess_model(empty, device_map=None)
    return {name: module for name, module in empty.named_modules() if isinstance(module, Linear4bit)}


def _put(layer: Linear4bit, result: Rounded) -> None:
    empty = cast(Params4bit, layer.weight)
    layer.weight = Params4bit(
        result.codes,
        requires_grad=False,
        quant_state=result.state,
        blocksize=result.state.blocksize,
        compress_statistics=empty.compress_statistics,
        quant_type=empty.quant_type,
        quant_storage=empty.quant_storage,
        module=layer,
        bnb_quantized=True,
    )
    layer.quant_state = result.state


def _replace(model: PreTrainedModel, layers: dict[str, Linear4bit], quantizer: HfQuantizer) -> None:
    """Put the 4-bit `layers` into `model` in place of those that they were made of."""
    for name, layer in layers.items():
        layer.bias = cast("nn.Linear | Conv1D", model.get_submodule(name)).bias
        model.set_submodule(name, layer)
    model.hf_quantizer = quantizer  # type: ignore[assignment]  # no submodule, but torch takes attributes for such
    quantizer.postprocess_model(model)


def _rounded(
    model: PreTrainedModel, names: list[str], rows: list[list[int]], settings: params.Quantization
) -> Iterator[tuple[str, Rounded]]:
    """Each module of `names`, rounded: by gptq if `rows` reach it, else to the nearest."""
    left = {model.get_submodule(name): name for name in names}
    for module, result in rounded_by_gptq(model, rows, settings) if rows else ():
        if module in left:
            yield left.pop(module), result
    for rest, name in left.items():
        yield name, rounded_nearest(cast("nn.Linear | Conv1D", rest), settings)


def _check_blocks(layers: dict[str, Linear4bit], block: int) -> None:
    """Raise UserError if a row of a layer isn't whole blocks: bitsandbytes on a CPU reads others wrongly."""
    for name, layer in layers.items():
        if layer.in_features % block:
            raise UserError(
                f"quantization.block_size: {name} has {layer.in_features} inputs, no multiple of {block}; choose method "
                f"lora, or another model"
            )


def copy_whole(base: Base, target: Path) -> None:
    """Copy a base that is in four bits already to `target`."""
    copy_into(target, model_files(base.folder), base.folder)


def _copy_without_weights(folder: Path, target: Path) -> None:
    """Copy what `target` lacks of the model in `folder` (tokenizer, templates), except its weights."""
    others = (path for path in model_files(folder) if not _holds_weights(path))
    copy_into(target, (path for path in others if not (target / path.name).exists()), folder)


def _holds_weights(path: Path) -> bool:
    return path.suffix == ".safetensors" or path.name.endswith(".index.json")
