"""The device that a run is planned for: this machine, a graphics card by name, or an amount of memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import psutil
import torch

from finetune import device
from finetune.errors import UserError, quoted

MIB = 2**20
IMPORTS = 580 * 10**6
"""What a process on a CPU holds once its libraries are imported, which a peak on a CPU doesn't include: 0.556 to 0.576 GB
in benchmarks/results/scale.json."""
CONTEXT = 600 * 10**6
"""What CUDA and its libraries hold of a card in addition to tensors. Assumed, not measured here."""
DRIVER = 900 * 10**6
"""What the driver keeps of a card's total by nvidia-smi before any process: 0.3 to 0.9 GB. Assumed, not measured here."""

CARDS: dict[str, tuple[int, ...]] = {
    "RTX 3050": (8192,),
    "RTX 3060": (12288,),
    "RTX 3060 Ti": (8192,),
    "RTX 3070": (8192,),
    "RTX 3080": (10240, 12288),
    "RTX 3090": (24576,),
    "RTX 4060": (8188,),
    "RTX 4060 Ti": (8188, 16380),
    "RTX 4070": (12282,),
    "RTX 4080": (16376,),
    "RTX 4090": (24564,),
    "RTX 5090": (32607,),
    "T4": (15360,),
    "V100": (16384, 32768),
    "A10": (23028,),
    "A10G": (23028,),
    "L4": (23034,),
    "L40S": (46068,),
    "RTX A6000": (49140,),
    "A100": (40960, 81920),
    "H100": (81559,),
    "H200": (143771,),
}
"""Memory in MiB as nvidia-smi is known to show it, with error correction as shipped. Not measured here. The smallest comes
first, which a bare name means."""
WITHOUT_BF16 = ("T4", "V100")

_AMOUNT = re.compile(r"(?<![A-Za-z\d])(\d{1,6}(?:\.\d+)?)\s*(GB|GiB|G|MB|MiB)", re.IGNORECASE)
_UNITS = {"gb": 10**9, "g": 10**9, "gib": 2**30, "mb": 10**6, "mib": MIB}
_DECORATION = re.compile(r"nvidia|geforce|tesla|quadro|rtx|sxm\d?|pcie|hbm\d?e?|[\s_-]", re.IGNORECASE)


@dataclass(frozen=True)
class Device:
    """Where a run is planned."""

    name: str
    kind: str
    """torch's device type: 'cpu' or 'cuda'."""
    memory: int
    """Bytes."""
    reserved: int
    """Bytes of them that a run can't have, or that its peak doesn't count."""
    dtype: torch.dtype
    """The dtype of the matrix products."""
    here: bool = False
    """Whether it is this machine, whose speed can be measured."""

    @property
    def room(self) -> int:
        """Bytes for a run's peak."""
        return self.memory - self.reserved

    def fits(self, peak: int) -> bool:
        """Whether a run with a peak of so many bytes has room."""
        return peak <= self.room


def named(text: str) -> Device:
    """The card called `text` as drivers, data sheets or people write it, or one with so much memory ('8GB', '24576MiB').

    Raises UserError for anything else, with the nearest name.
    """
    amount = _AMOUNT.search(text)
    memory = round(float(amount[1]) * _UNITS[amount[2].lower()]) if amount else 0
    model = _plain(text.replace(amount[0], "") if amount else text)
    if not model and memory:
        return Device(f"a GPU of {memory / 1e9:g} GB", "cuda", memory, CONTEXT + DRIVER, torch.bfloat16)
    by_plain_name = {_plain(name): name for name in CARDS}
    name = by_plain_name.get(model)
    if name is None:
        nearest = get_close_matches(model, by_plain_name, n=1, cutoff=0) or [_plain("A100")]
        raise UserError(
            f"--device: {quoted(text)} is neither an amount of memory, such as 8GB, nor a known card; the nearest is "
            f"{by_plain_name[nearest[0]]}. Known are {', '.join(CARDS)}"
        )
    return _card(name, memory, text)


def _card(name: str, memory: int, text: str) -> Device:
    """The card `name`, the one with about so much `memory` in bytes if that isn't 0."""
    sizes = [size for size in CARDS[name] if not memory or 0.85 < size * MIB / memory < 1.15]
    if not sizes:
        known = " and ".join(_gb(size) for size in CARDS[name])
        raise UserError(f"--device: {quoted(text)}: {name} comes with {known}; for other sizes, give the memory alone")
    shown = f"{name} {_gb(sizes[0])}" if len(CARDS[name]) > 1 else name
    dtype = torch.float16 if name in WITHOUT_BF16 else torch.bfloat16
    return Device(shown, "cuda", sizes[0] * MIB, CONTEXT + DRIVER, dtype)


def _gb(mib: int) -> str:
    return f"{round(mib / 1024)}GB"


def _plain(name: str) -> str:
    return _DECORATION.sub("", name).lower()


def here() -> Device:
    """This machine's GPU, or its processor with the memory that is free."""
    if device.device().type == "cuda":
        known = torch.cuda.get_device_properties()
        # What the driver keeps isn't part of torch's total.
        return Device(known.name, "cuda", known.total_memory, CONTEXT, device.compute_dtype(), here=True)
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
