"""The rounding error of a weight in the form of an adapter: factors of low rank, the largest singular value first.

The error that counts is that of the layer's outputs. With inputs x whose parts are taken as independent, the best
factors of E are those of E diag(rms(x)), by its singular values (QERA-approx: Zhang et al. 2025, section 4.3; LQER:
Zhang et al. 2024, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file

from finetune.models.checkpoint import PEFT_PREFIX

FILE = "lost.safetensors"
"""Next to the 4-bit weights, under the name that 4-bit bases have had from the start."""

LARGEST_RANK = 64
"""What is kept; an adapter of a higher rank starts with zeros beyond it."""


@dataclass(frozen=True)
class Factors:
    """`b @ a` is the error, as near as its rank allows; b: (outputs, rank), a: (rank, inputs)."""

    a: torch.Tensor
    b: torch.Tensor


def factors(error: torch.Tensor, importance: torch.Tensor) -> Factors:
    """The factors of `error` (outputs, inputs), an input's errors counted by its `importance` (inputs).

    Both factors of a rank carry the root of its singular value, so that an optimizer moves them alike.
    """
    rank = min(LARGEST_RANK, *error.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(error * importance, q=min(rank + 16, *error.shape), niter=4)
    root = s[:rank].sqrt()
    return Factors(a=(v[:, :rank] / importance[:, None] * root).t(), b=u[:, :rank] * root)


def save(errors: dict[str, Factors], folder: Path) -> None:
    """Write the factors of each linear layer (by its name in the model) next to the model's weights."""
    tensors = {}
    for name, found in sorted(errors.items()):
        tensors[f"{name}.a"] = found.a.to(torch.bfloat16).contiguous().cpu()
        tensors[f"{name}.b"] = found.b.to(torch.bfloat16).contiguous().cpu()
    save_file(tensors, folder / FILE)


@torch.no_grad()
def start(model: PeftModel, folder: Path) -> None:
    """Let the adapters of `model` start as the rounding error of the 4-bit base in `folder`, as far as their rank goes.

    Ranks beyond those in the file start as peft has them, at zero. So do all adapters over a base without that file,
    which another program rounded; a line says so.
    """
    if not (folder / FILE).exists():
        print(f"{folder}: holds no rounding error, so the adapters start at zero")
        return
    with safe_open(folder / FILE, framework="pt") as kept:
        stored = set(kept.keys())
        for name, layer in model.named_modules():
            own = name.removeprefix(PEFT_PREFIX)
            if isinstance(layer, LoraLayer) and f"{own}.a" in stored:
                _set(layer, *(kept.get_tensor(f"{own}.{factor}") for factor in "ab"))


def _set(layer: LoraLayer, a: torch.Tensor, b: torch.Tensor) -> None:
    (adapter,) = layer.active_adapters
    down, up = (cast(torch.Tensor, matrices[adapter].weight) for matrices in (layer.lora_A, layer.lora_B))
    rank = min(len(a), len(down))
    down[:rank] = a[:rank]
    up[:, :rank] = b[:, :rank] / layer.scaling[adapter]
