"""A plan as a picture: each method's memory by parts beside what the device has."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from finetune.files import whole_file
from finetune.planner.devices import Device
from finetune.planner.parts import Parts
from finetune.planner.plan import Planned

COLORS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#F0E442", "#BBBBBB")
"""Of the parts, in their order: Okabe and Ito's."""


def draw(name: str, plans: list[Planned], device: Device, target: Path) -> None:
    """Write a PNG, a bar a method."""
    figure, axes = pyplot.subplots(figsize=(9, 1.6 + 0.6 * len(plans)), layout="constrained")
    labels = [one.method.name for one in plans]
    left = [0.0] * len(plans)
    for part, color in zip(fields(Parts), COLORS, strict=True):
        sizes = [getattr(one.parts, part.name) / 1e9 for one in plans]
        axes.barh(labels, sizes, left=left, color=color, label=part.name, edgecolor="white", linewidth=0.5)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:.2f}", va="center")
    room = (device.memory - device.reserved) / 1e9
    widest = max(left) * 1.15
    if room <= 2 * widest:
        axes.axvline(room, color="black", linestyle="--", label=f"room on {device.name}")
    axes.set(xlim=(0, max(widest, room * 1.05 if room <= 2 * widest else 0)), xlabel="planned peak, GB (10⁹ bytes)")
    axes.set_title(f"{name} on {device.name}: {room:.1f} GB for a run", loc="left")
    axes.invert_yaxis()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    with whole_file(target) as draft:
        figure.savefig(draft, dpi=120, format="png")
    pyplot.close(figure)
