"""What the next step of a training run depends on, to the byte: trained weights, optimizer state, random numbers.

Tensors lie in safetensors files, written one after the other: the library's own writer copies them all in memory first.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy
import torch
from safetensors import safe_open
from torch import nn

from finetune.distributed.shards import local, part, sharded, whole
from finetune.models.saved import trained

_TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.uint8: "U8",
}
"""The dtypes' names in safetensors."""


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write `tensors` by name. Those on another device, or in shards, are copied to the CPU one at a time; for shards the
    other processes call `send_tensors`."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(whole(tensor.detach()).cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def send_tensors(tensors: Mapping[str, torch.Tensor]) -> None:
    """Send this process's shards of `tensors` to the one that calls `write_tensors`."""
    for tensor in tensors.values():
        whole(tensor.detach())


def read_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each name and tensor (on the CPU) that `write_tensors` wrote, one in memory at a time."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  # no mapping
            yield name, file.get_tensor(name)


def load_weights(model: nn.Module, file: Path) -> None:
    """Set the trained weights of `model`, in place, to those of `file`."""
    parameters = trained(model)
    with torch.no_grad():
        for name, weight in read_tensors(file):
            local(parameters[name]).copy_(part(weight, parameters[name]))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The tensors of an optimizer's state, each named by the number of its parameter and its own name."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{index}.{key}": sharded(tensor, parameters[index]) if tensor.dim() else tensor
        for index, tensors in optimizer.state_dict()["state"].items()
        for key, tensor in tensors.items()
    }


def random_states() -> dict[str, Any]:
    """The states, in JSON form, of the random number generators of Python, numpy, torch and each CUDA device."""
    name, keys, *rest = cast("tuple[Any, ...]", numpy.random.get_state())
    return {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def restore_random(states: dict[str, Any]) -> None:
    """Set the generators to what `random_states` returned, also after a round trip through JSON."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    numpy.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    for device, state in enumerate(states["cuda"]):
        torch.cuda.set_rng_state(torch.tensor(state, dtype=torch.uint8), device)


def offset_random(rank: int) -> None:
    """Seed torch differently in the process of `rank` than in the first, whose dropout would be the same otherwise."""
    if rank:
        torch.manual_seed(torch.initial_seed() + rank)
