"""The tables of docs/distributed.md, out of the results that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune import files

from .cost import EPOCH, NAMES
from .largest import CAP_GB, LENGTH
from .results import Outcome
from .shapes import LADDER, SHAPES

NONE = "No run on a GPU is recorded yet."

SEED = {
    "qlora": "| | *the seed's README: qlora, RTX 3060 8 GB* | | ≈ 2 | 10 |",
    "full": "| | *the seed's README: full, RTX 3060 8 GB* | | ≈ 6 | 27 |",
}
"""Claimed there for DistilGPT-2 and 800 records; no run of it is recorded."""


def markdown(folder: Path) -> str:
    """All tables, or a sentence if no part has been measured."""
    sections = []
    for part, table in (("tests", _tests), ("cost", _cost), ("largest", _largest), ("kernels", _kernels)):
        path = folder / f"{part}.json"
        if path.exists():
            found = files.read_json(path)
            sections.append(f"{table(found['measurements'])}\n\n{_where(found)}")
    return "\n\n".join(sections) or NONE


def _where(found: dict[str, Any]) -> str:
    return f"{found['hardware']} ({found.get('memory_gb', '?')} GB); {found['versions']}."


def _tests(done: dict[str, Outcome]) -> str:
    passed = sum(1 for one in done.values() if one.get("passed"))
    lines = ["| test that did not pass | |", "|---|---|"]
    lines += [f"| `{key}` | {_other(one)} |" for key, one in done.items() if not one.get("passed")]
    return f"**Tests**: {passed} of {len(done)} passed." + ("\n\n" + "\n".join(lines) if len(lines) > 2 else "")


def _cost(done: dict[str, Outcome]) -> str:
    lines = [f"| shape | | tokens/s | peak (GB) | {EPOCH} records (minutes) |", "|---|---|---:|---:|---:|"]
    for shape in SHAPES:
        for name in NAMES:
            one = done.get(f"{shape}/{name}")
            if one is None:
                continue
            figures = (
                f"{one['tokens_per_second']:.0f} | {one['peak_device_gb']:.2f} | {one['epoch_minutes']:.2f}"
                if "tokens_per_second" in one
                else f"{_other(one)} | | "
            )
            lines.append(f"| {SHAPES[shape].like} | {name} | {figures} |")
        if shape == "distilgpt2":
            lines += SEED.values()
    return "**Cost**\n\n" + "\n".join(lines)


def _largest(done: dict[str, Outcome]) -> str:
    title = f"**The largest model that QLoRA trains** when torch may take {CAP_GB:g} GB, {LENGTH} tokens at a time"
    lines = ["| shape | layers | parameters (billions) | trains | peak (GB) |", "|---|---:|---:|---|---:|"]
    for key, one in done.items():
        name, layers = key.split("/")
        word = _other(one) if "fits" not in one else "yes" if one["fits"] else "no"
        peak = f"{one['peak_device_gb']:.2f}" if "peak_device_gb" in one else ""
        billions = f"{one['parameters'] / 1e9:.2f}" if "parameters" in one else ""
        lines.append(f"| {LADDER[name].like} | {layers} | {billions} | {word} | {peak} |")
    return f"{title}\n\n" + "\n".join(lines)


def _kernels(done: dict[str, Outcome]) -> str:
    lines = ["| kernel | | dtype | ms | peak (GB) | error |", "|---|---|---|---:|---:|---:|"]
    optimizers = ["| optimizer | ms a step | bytes a weight | error |", "|---|---:|---:|---:|"]
    for key, one in done.items():
        kernel, name, dtype = key.split("/")
        if kernel == "optimizer":
            figures = (
                f"{one['milliseconds']:.2f} | {one['bytes_per_weight']:.1f} | {one['error']:.2g}"
                if "milliseconds" in one
                else f"{_other(one)} | | "
            )
            optimizers.append(f"| {name} | {figures} |")
        else:
            figures = (
                f"{one['milliseconds']:.2f} | {one.get('peak_gb', '')} | {one['error']:.2g}"
                if "milliseconds" in one
                else f"{_other(one)} | | "
            )
            lines.append(f"| {kernel} | {name} | {dtype} | {figures} |")
    return "**Kernels**\n\n" + "\n".join(lines) + "\n\n" + "\n".join(optimizers)


def _other(one: Outcome) -> str:
    """What is said of a measurement without figures."""
    if one.get("out_of_memory"):
        return "out of memory"
    return str(one.get("skipped") or f"failed: {one.get('failed', '')}").replace("|", "/").replace("\n", " ")
