"""A plan: what each method would take of a device's memory and time, the largest settings that fit, and advice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from finetune import params, places
from finetune.errors import UserError
from finetune.kernels.attention import ROUND_ROWS_TO
from finetune.methods import METHODS, Method
from finetune.models.base import Base
from finetune.planner.devices import Device
from finetune.planner.epoch_time import epoch_seconds
from finetune.planner.memory import ModelSizes, Parts, model_sizes, parts_at_peak
from finetune.planner.records import MicroBatch, TrainingRecords, largest_micro_batch, micro_batch
from finetune.sources.catalogue import CATALOGUE

MOST_TOKENS = 2**15
"""The largest micro-batch that is tried."""

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    | {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192}
    | {"tie_word_embeddings": True},
    "distilgpt2": {"model_type": "gpt2", "n_embd": 768, "n_layer": 6, "n_head": 12, "n_positions": 1024}
    | {"vocab_size": 50257},
}
"""config.json of the catalogue's models, for a plan before one is fetched."""


@dataclass(frozen=True)
class MethodPlan:
    """What a run by one method takes."""

    method: Method
    parts: Parts
    checkpointed: int
    """Bytes at the peak with the other choice of train.gradient_checkpointing."""
    fits: bool
    tokens: int
    """The largest train.tokens_per_micro_batch that fits, everything else as it is; 0 if none does."""
    max_length: int
    """The largest data.max_length that fits, one sequence in a micro-batch; 0 if none does."""
    epoch_seconds: float | None
    """None where it isn't timed: on another device, or where the run doesn't fit."""


def config_of(source: str, given: str | None = None) -> tuple[str, PreTrainedConfig]:
    """The name of the model to plan, and its config.

    It is that of the folder or config.json `given`, of the pipeline's base model if that is of `source` (model.source),
    of the catalogue, or of the folder `source`. Raises UserError if there is none yet, or none that can be trained here.
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
        known = ", ".join(CATALOGUE["model"])
        raise UserError(f"--model: {given} is no folder with a config.json, no config.json, and none of {known}")
    return path


def plan(
    config: PreTrainedConfig, p: params.Params, records: TrainingRecords, device: Device, *, timed: bool
) -> list[MethodPlan]:
    """A plan for every method. Raises UserError if the model or `p.lora` can't be planned."""
    return [_planned(config, method, p, records, device, timed) for method in METHODS.values()]


def _planned(
    config: PreTrainedConfig, method: Method, p: params.Params, records: TrainingRecords, device: Device, timed: bool
) -> MethodPlan:
    sizes, at = model_sizes(config, method, p, device), largest_micro_batch(records, p.train)
    other = replace(p.train, gradient_checkpointing=not p.train.gradient_checkpointing)
    parts = parts_at_peak(sizes, p.train, at).per_rank(p.launch)
    fits = device.fits(parts.total)

    def has_room(tokens: int, longest: int) -> bool:
        tried = micro_batch(records.cut(longest), p.train, tokens, longest)
        return device.fits(parts_at_peak(sizes, p.train, tried).per_rank(p.launch).total)

    longest, positions = records.lengths[-1], getattr(config, "max_position_embeddings", None) or MOST_TOKENS
    return MethodPlan(
        method=method,
        parts=parts,
        checkpointed=parts_at_peak(sizes, other, at).per_rank(p.launch).total,
        fits=fits,
        tokens=_largest(lambda tokens: has_room(tokens, min(tokens, longest)), MOST_TOKENS),
        max_length=_largest(lambda length: has_room(length, length), min(MOST_TOKENS, positions)),
        epoch_seconds=epoch_seconds(config, method, p, records, device.dtype)
        if timed and device.here and fits
        else None,
    )


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest multiple of `ROUND_ROWS_TO` up to `most` that fits, provided that more never needs less; 0 if none."""
    low, high = 0, most // ROUND_ROWS_TO + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * ROUND_ROWS_TO) else (low, middle)
    return low * ROUND_ROWS_TO


def advice(sizes: ModelSizes, method: Method, p: params.Params, records: TrainingRecords, limit: int) -> str:
    """What to set so that a run's peak is at most `limit` bytes, in the words of params.yaml; the least change first."""

    def fits(train: params.Train, at: MicroBatch) -> bool:
        return parts_at_peak(sizes, train, at).per_rank(p.launch).total <= limit

    def most_tokens(train: params.Train) -> int:
        def fits_by(tokens: int) -> bool:
            changed = replace(train, tokens_per_micro_batch=tokens)
            return fits(changed, largest_micro_batch(records, changed))

        found = _largest(fits_by, largest_micro_batch(records, train).tokens - 1)
        return found if found >= longest else 0  # a longer sequence goes through whatever the setting

    def fits_by_length(length: int) -> bool:
        changed = replace(checkpointed, tokens_per_micro_batch=length)
        return fits(checkpointed, largest_micro_batch(records.cut(length), changed))

    longest, checkpointed = records.lengths[-1], replace(p.train, gradient_checkpointing=True)
    if tokens := most_tokens(p.train):
        return f"set train.tokens_per_micro_batch to {tokens}"
    words = [] if p.train.gradient_checkpointing else ["train.gradient_checkpointing to true"]
    if words and fits(checkpointed, largest_micro_batch(records, checkpointed)):
        return f"set {words[0]}"
    if tokens := most_tokens(checkpointed):
        return f"set {' and '.join([*words, f'train.tokens_per_micro_batch to {tokens}'])}"
    if length := _largest(fits_by_length, longest - 1):
        shorter = [f"data.max_length to {length}", f"train.tokens_per_micro_batch to {length}"]
        return f"set {' and '.join([*words, *shorter])}"
    other = "" if method.quantized else "method to qlora, or "
    return f"set {other}model.source to a smaller model"
