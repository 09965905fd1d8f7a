"""What a plan is made for: this machine, a card by its name, or so many GB of a card's memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from finetune import device
from finetune.errors import UserError, quoted

GIB = 2**30
IMPORTS = 580 * 10**6
"""What a process on a CPU holds when its libraries are imported, which a peak on a CPU is above: 0.556 to 0.576 GB in
benchmarks/results/scale.json."""
CONTEXT = 600 * 10**6
"""What CUDA and its libraries hold of a card beside tensors. Taken, not measured here."""


@dataclass(frozen=True)
class Speed:
    """By a card's data sheet."""

    bandwidth: float
    """Bytes a second."""
    flops: float
    """16-bit operations a second of the tensor cores, dense, summed in fp32."""


@dataclass(frozen=True)
class Device:
    """Where a run is planned."""

    name: str
    kind: str
    """torch's type: 'cpu' or 'cuda'."""
    memory: int
    """Bytes."""
    reserved: int
    """Bytes of them that a run's peak doesn't count."""
    dtype: torch.dtype
    """Of the matrix products."""
    speed: Speed | None = None
    here: bool = False
    """This machine, whose speed can be measured."""

    def fits(self, peak: int) -> bool:
        """Whether a run of that peak has room."""
        return peak <= self.memory - self.reserved


def _card(name: str, gib: int, bandwidth: float, tflops: float, *, bf16: bool = True) -> Device:
    dtype = torch.bfloat16 if bf16 else torch.float16
    return Device(name, "cuda", gib * GIB, CONTEXT, dtype, Speed(bandwidth * 1e9, tflops * 1e12))


# Memory in GiB, GB/s, TFLOP/s. GeForce 30: NVIDIA Ampere GA102 whitepaper, tables 2 and 9, and the product pages. GeForce 40:
# NVIDIA Ada whitepaper, appendix A. GeForce 50: NVIDIA RTX Blackwell whitepaper, appendix. Others: each card's data sheet.
CARDS = {
    card.name: card
    for card in (
        _card("RTX 3050", 8, 224, 18.2),
        _card("RTX 3060", 12, 360, 25.5),
        _card("RTX 3060 Ti", 8, 448, 32.4),
        _card("RTX 3070", 8, 448, 40.6),
        _card("RTX 3080", 10, 760, 59.5),
        _card("RTX 3090", 24, 936, 71.0),
        _card("RTX 4060", 8, 272, 30.2),
        _card("RTX 4060 Ti", 8, 288, 44.1),
        _card("RTX 4070", 12, 504, 58.3),
        _card("RTX 4080", 16, 717, 97.5),
        _card("RTX 4090", 24, 1008, 165.2),
        _card("RTX 5090", 32, 1792, 209.5),
        _card("T4", 16, 320, 65.0, bf16=False),
        _card("V100", 16, 900, 125.0, bf16=False),
        _card("A10", 24, 600, 125.0),
        _card("L4", 24, 300, 121.0),
        _card("L40S", 48, 864, 362.0),
        _card("RTX A6000", 48, 768, 154.8),
        _card("A100 40GB", 40, 1555, 312.0),
        _card("A100 80GB", 80, 2039, 312.0),
        _card("H100", 80, 3350, 989.0),
        _card("H200", 141, 4800, 989.0),
    )
}

_MEMORY = re.compile(r"(\d{1,4}(?:\.\d+)?)\s*(GB|GiB|G)", re.IGNORECASE)


def named(text: str) -> Device:
    """The card called `text`, or one of so much memory ('8GB'). Raises UserError for what is neither."""
    amount = _MEMORY.fullmatch(text.strip())
    if amount and float(amount[1]) > 0:
        unit = GIB if amount[2].lower() == "gib" else 10**9
        return Device(f"a GPU of {amount[1]} GB", "cuda", round(float(amount[1]) * unit), CONTEXT, torch.bfloat16)
    found = {_plain(name): card for name, card in CARDS.items()}.get(_plain(text))
    if found is None:
        raise UserError(
            f"--device: {quoted(text)} is neither an amount of memory, as in 8GB, nor a card that is known here: "
            f"{', '.join(CARDS)}"
        )
    return found


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|[\s_-]", "", name.lower())


def here() -> Device:
    """This machine's GPU, or its processor and the memory that is free."""
    if device.device().type == "cuda":
        known = torch.cuda.get_device_properties()
        found = {_plain(name): card for name, card in CARDS.items()}.get(_plain(known.name))
        speed = found.speed if found else None
        return Device(known.name, "cuda", known.total_memory, CONTEXT, device.compute_dtype(), speed, here=True)
    # What is imported already isn't among what is free.
    reserved = max(0, IMPORTS - psutil.Process().memory_info().rss)
    return Device(device.describe(), "cpu", _free(), reserved, device.compute_dtype(), here=True)


def _free() -> int:
    """What a new process can have: what is free, and no more than a container's limit leaves."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError):
        return free
