"""A plan as a table, as a picture, and as the announcement that train prints before step 1."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import params
from finetune.errors import UserError
from finetune.methods import METHODS, PART_COLORS
from finetune.models.base import Base
from finetune.planner import devices
from finetune.planner.devices import Device
from finetune.planner.epoch_time import WITHIN
from finetune.planner.memory import Parts, model_sizes, parts_at_peak
from finetune.planner.plan import MethodPlan, advice
from finetune.planner.records import MicroBatch, TrainingRecords, largest_micro_batch, records_of

if TYPE_CHECKING:
    from datasets import Dataset

ADVICE_WITHOUT_A_PLAN = (
    "lower train.tokens_per_micro_batch or data.max_length, or set train.gradient_checkpointing: true"
)
SAVING = 0.25
"""Share of the memory that settings can lower which the next run should save, if memory ran out though the plan fitted."""

_WIDTH = 12


def table(
    name: str, plans: list[MethodPlan], records: TrainingRecords, at: MicroBatch, device: Device, *, checkpointing: bool
) -> str:
    """Memory by parts, whether it fits, the largest settings that do, and time; a column for each method."""
    other = "without" if checkpointing else "with"
    lines = [
        f"{name} on {device.name}: {_gb(device.memory)} GB, of which {_gb(device.reserved)} GB aren't available to a run",
        _records(records, at),
        "",
        _row("GB (10^9 bytes)", plans, lambda one: one.method.name),
        *(_row(part.name, plans, _part(part.name)) for part in fields(Parts)),
        _row("peak", plans, lambda one: _gb(one.parts.total)),
        _row(f"peak {other} gradient checkpointing", plans, lambda one: _gb(one.checkpointed)),
        "",
        _row("fits", plans, lambda one: "yes" if one.fits else "no"),
        _row("largest train.tokens_per_micro_batch", plans, lambda one: str(one.tokens or "none")),
        _row("largest data.max_length, sent alone", plans, lambda one: str(one.max_length or "none")),
    ]
    if any(one.epoch_seconds for one in plans):
        lines += [_row("minutes per epoch", plans, _minutes), _row("", plans, _range), "", _about_time(records)]
    if not device.here:
        lines += ["", "Time is estimated for the machine at hand only: plan without --device there."]
    return "\n".join(lines)


def _records(records: TrainingRecords, at: MicroBatch) -> str:
    count, longest = len(records.lengths), records.lengths[-1]
    if records.known:
        what = f"{count} training records of {records.lengths[0]} to {longest} tokens"
    else:
        what = f"no data is prepared: {count} training records of {longest} tokens each are assumed"
    return f"{what}; the largest micro-batch has {at.tokens} tokens"


def _row(title: str, plans: list[MethodPlan], cell: Callable[[MethodPlan], str]) -> str:
    return f"{title:<40}" + "".join(f"{cell(one):>{_WIDTH}}" for one in plans)


def _part(name: str) -> Callable[[MethodPlan], str]:
    return lambda one: _gb(getattr(one.parts, name))


def _gb(size: float) -> str:
    return f"{size / 1e9:.3f}"


def _minutes(one: MethodPlan) -> str:
    return f"{one.epoch_seconds / 60:.1f}" if one.epoch_seconds else "?"


def _range(one: MethodPlan) -> str:
    if not one.epoch_seconds:
        return ""
    return f"{one.epoch_seconds / 60 * (1 - WITHIN):.1f}-{one.epoch_seconds / 60 * (1 + WITHIN):.1f}"


def _about_time(records: TrainingRecords) -> str:
    how = f"Time: a few layers of this shape were timed here; an epoch may take {WITHIN:.0%} less or more."
    return how if records.known else f"{how} It assumes records as long as data.max_length; shorter ones take less."


def draw(name: str, plans: list[MethodPlan], device: Device, target: Path) -> None:
    """Write a PNG with a bar for each method: its memory by parts, and the device's room."""
    from finetune.plots import pyplot, save_png

    figure, axes = pyplot.subplots(figsize=(9, 1.6 + 0.6 * len(plans)), layout="constrained")
    labels = [one.method.name for one in plans]
    left = [0.0] * len(plans)
    for part, color in zip(fields(Parts), PART_COLORS.values(), strict=True):
        sizes = [getattr(one.parts, part.name) / 1e9 for one in plans]
        axes.barh(labels, sizes, left=left, color=color, label=part.name, edgecolor="white", linewidth=0.5)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:.2f}", va="center")
    room, widest = device.room / 1e9, max(left) * 1.15
    if room <= 2 * widest:
        axes.axvline(room, color="black", linestyle="--", label=f"room on {device.name}")
        widest = max(widest, room * 1.05)
    axes.set(xlim=(0, widest), xlabel="planned peak, GB (10⁹ bytes)")
    axes.set_title(f"{name} on {device.name}: {room:.1f} GB available", loc="left")
    axes.invert_yaxis()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    save_png(figure, target)


def announce(base: Base, p: params.Params, split: Dataset) -> Callable[[], str]:
    """Print the memory that training `base` on `split` by `p` will take, and a warning if there is less.

    Returns the advice for a run that runs out of memory all the same. A model that can't be planned is trained without.
    """
    device, records = devices.here(), records_of(split)
    try:
        sizes = model_sizes(base.config, METHODS[p.method], p, device)
        planned = parts_at_peak(sizes, p.train, largest_micro_batch(records, p.train)).per_rank(p.launch)
    except UserError as error:
        print(f"no plan: {error}")
        return lambda: ADVICE_WITHOUT_A_PLAN
    lowered = planned.activations + planned.logits + planned.workspace
    limit = min(device.room, planned.total - round(SAVING * lowered))

    def how_to_lower() -> str:
        return advice(sizes, METHODS[p.method], p, records, limit)

    shown = ", ".join(f"{name} {size:.2f}" for name, size in planned.gb().items())
    total, room = planned.total / 1e9, device.room / 1e9
    print(f"plan: {p.method} takes {total:.2f} GB at its peak ({shown}); {room:.2f} GB are available", flush=True)
    if not device.fits(planned.total):
        print(f"warning: that won't fit: {how_to_lower()}", file=sys.stderr, flush=True)
    return how_to_lower
