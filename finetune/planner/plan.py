"""A plan: what each method would take of a device's memory and time, by params.yaml and the model's shape alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedConfig

from finetune import params
from finetune.methods import METHODS, Method
from finetune.planner import clock, fits
from finetune.planner.clock import Seconds
from finetune.planner.devices import Device
from finetune.planner.fits import Largest
from finetune.planner.frame import as_autocast_has_it, frame
from finetune.planner.parts import Parts, is_sharded, parts
from finetune.planner.passes import Records, largest
from finetune.planner.sizes import Sizes, sizes


@dataclass(frozen=True)
class Planned:
    """One method's."""

    method: Method
    parts: Parts
    checkpointed: int
    """Bytes at the peak with the other choice of train.gradient_checkpointing."""
    fits: bool
    largest: Largest
    epoch: Seconds | None
    """None where no speed is known."""


def plan(config: PreTrainedConfig, p: params.Params, data: Records, device: Device, *, timed: bool) -> list[Planned]:
    """Of every method. Raises UserError if the model or `p.lora` can't be planned."""
    return [_planned(config, method, p, data, device, timed) for method in METHODS.values()]


def _planned(
    config: PreTrainedConfig, method: Method, p: params.Params, data: Records, device: Device, timed: bool
) -> Planned:
    found, at = sizes_of(config, method, p, device), largest(data, p.train)
    other = replace(p.train, gradient_checkpointing=not p.train.gradient_checkpointing)
    held = parts(found, p.train, at).per_rank(p.launch)
    return Planned(
        method,
        held,
        parts(found, other, at).per_rank(p.launch).total,
        device.fits(held.total),
        fits.largest_that_fits(found, p.train, p.launch, data, device),
        _epoch(config, found, method, p, data, device, held) if timed else None,
    )


def sizes_of(config: PreTrainedConfig, method: Method, p: params.Params, device: Device) -> Sizes:
    """Of the model of `config` as `method` trains it on `device`; fp16 weights are trained as fp32."""
    trained_as_fp32 = not method.adapters and device.dtype == torch.float16
    model = frame(config, method, p.lora, torch.float32 if trained_as_fp32 else device.dtype, device.kind)
    found = sizes(model, method, p.quantization, device.kind, shard=is_sharded(p.launch))
    as_autocast_has_it(model, device.dtype)
    return found


def _epoch(
    config: PreTrainedConfig, found: Sizes, method: Method, p: params.Params, data: Records, device: Device, held: Parts
) -> Seconds | None:
    if device.here and device.fits(held.total):
        return clock.measured(config, method, p, data, device.dtype)
    if device.speed:
        return clock.by_data_sheet(found, method, p, data, device.speed)
    return None
