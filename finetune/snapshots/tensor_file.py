"""Tensors in a safetensors file, written one after the other: safetensors' own writer copies them all first."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from finetune.distributed.shards import whole

_TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.uint8: "U8",
}


def write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write `tensors` by name. What lies on another device than the CPU, or in other processes, is copied from there one
    at a time; those call `give` for it."""
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


def give(tensors: Mapping[str, torch.Tensor]) -> None:
    """Hand this process's parts of `tensors` to the one that calls `write`."""
    for tensor in tensors.values():
        whole(tensor.detach())


def read(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each name and tensor (on the CPU) that `write` wrote, one in memory at a time."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  # no mapping
            yield name, file.get_tensor(name)
