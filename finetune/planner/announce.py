"""The plan that train prints before it starts, and what it advises where memory runs out all the same."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from finetune import params
from finetune.errors import UserError
from finetune.methods import METHODS
from finetune.models.base import Base
from finetune.planner import devices, fits
from finetune.planner.devices import Device
from finetune.planner.parts import Parts, parts
from finetune.planner.passes import Records, largest, records_of
from finetune.planner.plan import sizes_of
from finetune.planner.sizes import Sizes

if TYPE_CHECKING:
    from datasets import Dataset

UNKNOWN = "lower train.tokens_per_micro_batch or data.max_length, or set train.gradient_checkpointing: true"
"""What helps where there is no plan."""
SPARED = 0.25
"""Share of what settings can lower that the next run is to spare, where memory ran out though the plan fitted."""


def announce(base: Base, p: params.Params, split: Dataset) -> Callable[[], str]:
    """Print the memory that training `base` on `split` by `p` is going to take, and a warning where that is
    more than there is. What is returned gives the advice for running out of memory all the same.

    A model that can't be planned is trained without.
    """
    device, data = devices.here(), records_of(split)
    try:
        sizes = sizes_of(base.config, METHODS[p.method], p, device)
        planned = parts(sizes, p.train, largest(data, p.train)).per_rank(p.launch)
    except UserError as error:
        print(f"no plan: {error}")
        return lambda: UNKNOWN
    print(_sentence(p.method, planned, device), flush=True)
    if not device.fits(planned.total):
        print(f"warning: that won't fit: {_advice(sizes, p, data, device, planned)}", file=sys.stderr, flush=True)
    return lambda: _advice(sizes, p, data, device, planned)


def _sentence(method: str, planned: Parts, device: Device) -> str:
    shown = ", ".join(f"{name.removesuffix('_gb')} {size:.2f}" for name, size in planned.gb().items())
    room = (device.memory - device.reserved) / 1e9
    return f"plan: {method} takes {planned.total / 1e9:.2f} GB at its peak ({shown}); there are {room:.2f} GB"


def _advice(sizes: Sizes, p: params.Params, data: Records, device: Device, planned: Parts) -> str:
    lowered = planned.activations + planned.logits + planned.workspace
    limit = min(device.memory - device.reserved, planned.total - round(SPARED * lowered))
    return fits.advice(sizes, METHODS[p.method], p.train, p.launch, data, limit)
