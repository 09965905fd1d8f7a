"""The states of all random number generators, in JSON form."""

import random
from typing import Any, cast

import numpy
import torch


def read() -> dict[str, Any]:
    """Of Python, numpy, torch, and each CUDA device."""
    name, keys, *rest = cast("tuple[Any, ...]", numpy.random.get_state())
    return {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def restore(states: dict[str, Any]) -> None:
    """Set what `read` returned, also after a way through JSON."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    numpy.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    for device, state in enumerate(states["cuda"]):
        torch.cuda.set_rng_state(torch.tensor(state, dtype=torch.uint8), device)


def set_apart(rank: int) -> None:
    """Let the process of `rank` draw other numbers from now on than the first, whose dropout would be the same."""
    if rank:
        torch.manual_seed(torch.initial_seed() + rank)
