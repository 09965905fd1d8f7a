"""A model that several processes train: each holds all of it (DDP), or a part (FSDP2).

Both watch the forward pass of a module: there gradients are got ready to be summed, or weights to be gathered. The loss
here reads the head's weights outside the model's forward, so it is a module around both that is watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from finetune.device import compute_dtype, device
from finetune.distributed.group import Group
from finetune.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    Model = PreTrainedModel | PeftModel


class Passes(Protocol):
    """How a model is called."""

    def __call__(self, function: Callable[..., Any], *given: Any) -> Any:
        """`function(model, *given)`, as a forward pass of the model."""

    def gradients_kept(self) -> AbstractContextManager[object]:
        """Within the block gradients need not be summed over the processes: another pass of the step follows."""


class _Around(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *given: Any) -> Any:
        return function(self.model, *given)


class Alone:
    """A model in one process."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __call__(self, function: Callable[..., Any], *given: Any) -> Any:
        return function(self._model, *given)

    def gradients_kept(self) -> AbstractContextManager[object]:
        return nullcontext()


class DataParallel:
    """A model that each process holds whole, its gradients summed in buckets during the backward pass (Li et al.
    2020, section 3.2)."""

    def __init__(self, model: Model) -> None:
        self._module = DistributedDataParallel(_Around(model), broadcast_buffers=False, gradient_as_bucket_view=True)
        # Sums, not means: the loss is divided by the targets of all processes.
        self._module.register_comm_hook(None, lambda _, bucket: _summed(bucket))

    def __call__(self, function: Callable[..., Any], *given: Any) -> Any:
        # In eval mode nothing is to be summed: DDP would wait for a backward pass.
        module = self._module if torch.is_grad_enabled() else self._module.module
        return module(function, *given)

    def gradients_kept(self) -> AbstractContextManager[object]:
        return self._module.no_sync()


def _summed(bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    work = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


class Sharded:
    """A model of which each process holds a part of every weight, gradient and optimizer state (ZeRO-3: Rajbhandari et
    al. 2020, section 5.3), layer by layer gathered for its passes."""

    def __init__(self, model: Model, layers: list[nn.Module], group: Group) -> None:
        _free_of_classes(model)
        self._module = _Around(model)
        mesh = init_device_mesh(device().type, (group.size,))
        watched: list[Any] = [fully_shard(module, mesh=mesh) for module in (*layers, self._module)]
        for module in watched:
            # Sums, as above.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)

    def __call__(self, function: Callable[..., Any], *given: Any) -> Any:
        try:
            return self._module(function, *given)
        finally:
            if not torch.is_grad_enabled():
                # What lies outside the layers stays gathered for a backward pass, which won't come.
                watched: Any = self._module
                watched.reshard()

    def gradients_kept(self) -> AbstractContextManager[object]:
        # Each pass's gradients are summed at once, so that no process ever holds them whole.
        return nullcontext()


def _free_of_classes(model: nn.Module) -> None:
    """Let 4-bit blocks be plain tensors of bytes, which are cut and gathered like any other; the module keeps what they mean."""
    modules: Iterator[Any] = model.modules()
    for module in modules:
        state = getattr(module._parameters.get("weight"), "quant_state", None)  # peft's layers show their base's
        if state is not None:
            state.to(device())
            module.quant_state = state
            module.weight = nn.Parameter(module.weight.data, requires_grad=False)


def wrapped(model: Model, layers: list[nn.Module], group: Group, *, shard: bool) -> Passes:
    """`model`, trained by `group`; if it is to `shard`, each process holds a part of it, and of each of its `layers`.

    Raises UserError where the hardware multiplies in fp16, whose scaling of the loss isn't made for shards here.
    """
    if group.size == 1:
        return Alone(model)
    if not shard:
        return DataParallel(model)
    if compute_dtype() == torch.float16:
        raise UserError("launch.shard: needs a GPU that multiplies bf16 (compute capability 8.0); set it to false")
    return Sharded(model, layers, group)
