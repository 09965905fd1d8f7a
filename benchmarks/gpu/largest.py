"""The largest model that QLoRA trains when torch may take 8 GB: published shapes in turn, then layers of the first too large."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from contenders import ours

from .results import Outcome
from .shapes import LADDER, TINY_LADDER, Shape

CAP_GB, TINY_CAP_GB = 8.0, 0.15
"""10^9 bytes. A card sold as 8 GB has 8.6; what CUDA takes for itself comes out of the rest."""

LENGTH, STEPS = 512, 3
"""Tokens of a sequence, one a batch; and optimizer steps, after which a run counts as one that trains."""


def next_key(done: Mapping[str, Outcome], tiny: bool) -> str | None:
    """What is to be tried next: 'shape/layers'; None once the largest is known."""
    if any({"failed", "skipped"} & one.keys() for one in done.values()):
        return None
    for name, shape in ladder(tiny).items():
        whole = f"{name}/{shape.layers}"
        if whole not in done:
            return whole
        if not fits(done[whole]):
            return _between(done, name, shape.layers)
    return None


def _between(done: Mapping[str, Outcome], name: str, layers: int) -> str | None:
    """By halves, between no layers and all of them."""
    low, high = 0, layers
    while high - low > 1:
        middle = (low + high) // 2
        key = f"{name}/{middle}"
        if key not in done:
            return key
        low, high = (middle, high) if fits(done[key]) else (low, middle)
    return None


def ladder(tiny: bool) -> dict[str, Shape]:
    return TINY_LADDER if tiny else LADDER


def fits(outcome: Outcome) -> bool:
    return bool(outcome.get("fits"))


def measure(key: str, tiny: bool) -> Outcome:
    """Train one shape by QLoRA, activations recomputed, within the cap."""
    import torch

    from finetune.costs.meter import Meter

    from . import work

    name, layers = key.split("/")
    shape = ladder(tiny)[name].with_layers(int(layers))
    task = work.over(shape, STEPS, length=LENGTH, batch_size=1, gradient_checkpointing=True)
    cap = TINY_CAP_GB if tiny else CAP_GB
    meter = Meter().start()
    try:
        with _at_most(cap):
            result = ours(task, "qlora", meter)
    except torch.OutOfMemoryError:
        return {"fits": False, "parameters": parameters(shape)}
    finally:
        meter.stop()
    peak = meter.peak_device_gb()
    return {
        "fits": peak <= cap,
        "parameters": parameters(shape),
        "peak_device_gb": round(peak, 3),
        "seconds_per_step": round(result.ends[-1] - result.ends[-2], 3),
    }


@contextmanager
def _at_most(gb: float) -> Iterator[None]:
    """Have torch's allocator refuse more than so much on a CUDA device; a CPU's peak is looked at afterwards."""
    import torch

    if not torch.cuda.is_available():
        yield
        return
    total = torch.cuda.get_device_properties().total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gb * 1e9 / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def parameters(shape: Shape) -> int:
    """Weights of a model of `shape`."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.config())
    return sum(parameter.numel() for parameter in model.parameters())
