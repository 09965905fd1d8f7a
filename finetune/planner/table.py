"""A plan as a table for the terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from finetune.planner.clock import EFFICIENCY, MEASURED_WITHIN, ROOFLINE_WITHIN
from finetune.planner.devices import Device
from finetune.planner.parts import Parts
from finetune.planner.passes import Pass, Records
from finetune.planner.plan import Planned

_WIDTH = 12


def table(name: str, plans: list[Planned], data: Records, at: Pass, device: Device, *, checkpointing: bool) -> str:
    """Memory by parts, what fits, the largest settings that do, and time, a column a method."""
    other = "without" if checkpointing else "with"
    lines = [
        f"{name} on {device.name}: {_gb(device.memory)} GB, of which {_gb(device.reserved)} GB aren't a run's",
        _of_data(data, at),
        "",
        _row("GB (10^9 bytes)", plans, lambda one: one.method.name),
        *(_row(part.name, plans, _part(part.name)) for part in fields(Parts)),
        _row("peak", plans, lambda one: _gb(one.parts.total)),
        _row(f"peak {other} gradient checkpointing", plans, lambda one: _gb(one.checkpointed)),
        "",
        _row("fits", plans, lambda one: "yes" if one.fits else "no"),
        _row("largest train.tokens_per_micro_batch", plans, lambda one: _tokens(one.largest.tokens)),
        _row("largest data.max_length, one a pass", plans, lambda one: _tokens(one.largest.max_length)),
    ]
    if any(one.epoch for one in plans):
        lines += [_row("minutes an epoch", plans, _minutes), _row("", plans, _range), "", _how(plans, data)]
    return "\n".join(lines)


def _of_data(data: Records, at: Pass) -> str:
    if data.known:
        what = f"{len(data.lengths)} training records of {data.lengths[0]} to {data.lengths[-1]} tokens"
    else:
        what = (
            f"no data is prepared: {len(data.lengths)} training records are taken, each {data.lengths[-1]} tokens long"
        )
    return f"{what}; the largest micro-batch has {at.tokens} tokens"


def _row(title: str, plans: list[Planned], cell: Callable[[Planned], str]) -> str:
    return f"{title:<40}" + "".join(f"{cell(one):>{_WIDTH}}" for one in plans)


def _part(name: str) -> Callable[[Planned], str]:
    return lambda one: _gb(getattr(one.parts, name))


def _gb(size: float) -> str:
    return f"{size / 1e9:.3f}"


def _tokens(count: int) -> str:
    return str(count) if count else "none"


def _minutes(one: Planned) -> str:
    return f"{one.epoch.likely / 60:.1f}" if one.epoch else "?"


def _range(one: Planned) -> str:
    return f"{one.epoch.least / 60:.1f}-{one.epoch.most / 60:.1f}" if one.epoch else ""


def _how(plans: list[Planned], data: Records) -> str:
    known = [one.epoch for one in plans if one.epoch]
    if all(one.measured for one in known):
        how = f"Time: a few layers of this shape were timed here; an epoch may take {MEASURED_WITHIN:.0%} less or more."
    else:
        how = (
            f"Time isn't measured: by the data sheet, at {EFFICIENCY:.0%} of its operations; an epoch may take half or "
            f"{ROOFLINE_WITHIN:.0f} times as long."
        )
    return how if data.known else f"{how} It is for records as long as data.max_length: shorter ones take less."
