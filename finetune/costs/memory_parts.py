"""What a training run's memory holds in one process, in GB of 10^9 bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from finetune.distributed.shards import local

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState


@dataclass(frozen=True)
class MemoryParts:
    """The parts of a training run's memory, each at its own largest."""

    weights: float
    """The model's weights, with 4-bit blocks and their constants, but not the adapters."""
    adapters: float
    gradients: float
    """Of all trained weights: they exist together between the backward pass and the update."""
    optimizer: float
    activations: float
    """What the largest pass kept for its backward pass."""


class Activations:
    """Counts what the forward pass keeps for the backward pass, at each pass that is larger than any before."""

    def __init__(self, model: nn.Module) -> None:
        self.bytes = 0
        self.tokens = 0
        """Of the largest pass so far, which `bytes` is of."""
        self._model = model

    @contextmanager
    def watch(self, tokens: int) -> Iterator[None]:
        """Count in the block, a forward pass of `tokens` tokens."""
        if tokens <= self.tokens:
            yield
            return
        kept: dict[int, tuple[StorageWeakRef, int]] = {}
        known = set(_storages(_held(self._model)))

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
            return tensor.detach()  # the tensor itself may be the node's own output: a cycle that is never freed

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
        # What the pass has let go of by now (DoRA's norms) doesn't wait for the backward pass.
        alive = {place: size for place, (storage, size) in kept.items() if not storage.expired()}
        self.bytes = sum(size for place, size in alive.items() if place not in known)
        self.tokens = tokens


def memory_parts(model: nn.Module, optimizer: torch.optim.Optimizer, activations: Activations) -> MemoryParts:
    """The split of what `model` and `optimizer` hold after a step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    held = _storages(_held(model))
    adapters = _storages(trained) if isinstance(model, PeftModel) else {}
    state = [value for values in optimizer.state.values() for value in values.values() if torch.is_tensor(value)]
    return MemoryParts(
        weights=_gb(held) - _gb(adapters),
        adapters=_gb(adapters),
        gradients=sum(local(parameter).numel() * parameter.element_size() for parameter in trained) / 1e9,
        optimizer=_gb(_storages(state)),
        activations=activations.bytes / 1e9,
    )


def split_peak(parts: MemoryParts, peak_gb: float) -> dict[str, float]:
    """The split of a peak of `peak_gb` on the device. The rest is negative if the parts were never all held at once."""
    held = asdict(parts)
    split = {f"{name}_gb": round(size, 3) for name, size in held.items()}
    return split | {"rest_gb": round(peak_gb - sum(held.values()), 3)}


def _held(model: nn.Module) -> Iterator[torch.Tensor]:
    """Every tensor that a model keeps: parameters, buffers, and the constants of 4-bit weights."""
    yield from model.buffers()
    yield from model.parameters()
    for module in model.modules():
        yield from _constants(getattr(module, "quant_state", None))


def _constants(state: QuantState | None) -> Iterator[torch.Tensor]:
    if state is not None:
        yield from (value for value in vars(state).values() if torch.is_tensor(value))
        yield from _constants(state.state2)


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Address and bytes of the memory behind `tensors`, shared memory once."""
    storages = (local(tensor).untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}


def _gb(storages: dict[int, int]) -> float:
    return sum(storages.values()) / 1e9
