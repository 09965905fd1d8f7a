"""Make the 4-bit base model: its layers rounded, in the form in which bitsandbytes and transformers save and load it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune import params
from finetune.device import compute_dtype
from finetune.errors import UserError
from finetune.files import copy_into
from finetune.models import rounding_error
from finetune.models.base import Base
from finetune.models.loading import load_base
from finetune.quantization.calibration import can_be_walked
from finetune.quantization.rounding import Rounded, rounded_by_gptq, rounded_nearest
from finetune.sources.contents import model_files


def quantise(base: Base, rows: list[list[int]], settings: params.Quantization, target: Path) -> str:
    """Write the model `base` to `target` in four bits, with what rounding lost and the files beside the weights.

    `rows` are the token ids of the examples that gptq looks at. Returns the calibration that was used: a model whose
    layers don't simply feed one another is rounded to the nearest. Raises UserError if a layer's inputs are no multiple
    of the block size.
    """
    model = load_base(base, compute_dtype())
    model.eval().requires_grad_(False)
    frame = load_base(base, compute_dtype(), settings)
    names = [name for name, module in frame.named_modules() if isinstance(module, Linear4bit)]
    _check_blocks(frame, names, settings.block_size)
    calibration = settings.calibration
    if calibration == "gptq" and not can_be_walked(model, rows[0]):
        calibration = "nearest"
    errors = {}
    for name, result in _rounded(model, names, rows if calibration == "gptq" else [], settings):
        _put(cast(Linear4bit, frame.get_submodule(name)), result)
        errors[name] = result.error
        if len(errors) % 30 == 0:
            print(f"{len(errors)} of {len(names)} layers in 4 bits", flush=True)
    frame.save_pretrained(target)
    rounding_error.save(errors, target)
    _copy_beside_weights(base.folder, target)
    return calibration


def _rounded(
    model: PreTrainedModel, names: list[str], rows: list[list[int]], settings: params.Quantization
) -> Iterator[tuple[str, Rounded]]:
    """Every module of `names`: those that `rows` reach by gptq, the others to the nearest."""
    left = {model.get_submodule(name): name for name in names}
    for module, result in rounded_by_gptq(model, rows, settings) if rows else ():
        if module in left:
            yield left.pop(module), result
    for rest, name in left.items():
        yield name, rounded_nearest(cast("nn.Linear | Conv1D", rest), settings)


def _put(place: Linear4bit, result: Rounded) -> None:
    weight = cast(Params4bit, place.weight)
    weight.data, weight.blocksize = result.codes, result.state.blocksize
    weight.quant_state = place.quant_state = result.state


def _check_blocks(frame: PreTrainedModel, names: Iterable[str], block: int) -> None:
    """bitsandbytes reads a block that goes on in the next row wrongly on a CPU."""
    for name in names:
        columns = cast(Linear4bit, frame.get_submodule(name)).in_features
        if columns % block:
            raise UserError(
                f"quantization.block_size: {name} has {columns} inputs, no multiple of {block}; choose method lora, or "
                f"another model"
            )


def copy_whole(base: Base, target: Path) -> None:
    """Take a model that is in four bits already as it is."""
    copy_into(target, model_files(base.folder), base.folder)


def _copy_beside_weights(folder: Path, target: Path) -> None:
    """The files of the model in `folder` that `target` lacks (tokenizer, templates), but for its weights."""
    beside = (path for path in model_files(folder) if not _holds_weights(path))
    copy_into(target, (path for path in beside if not (target / path.name).exists()), folder)


def _holds_weights(path: Path) -> bool:
    return path.suffix == ".safetensors" or path.name.endswith(".index.json")
