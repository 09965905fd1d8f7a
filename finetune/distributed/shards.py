"""Tensors of which each process holds a part (FSDP2 cuts them along their first dimension), and whole ones."""

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of `tensor` that this process holds: all of it, unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of `tensor`. If it is sharded, every process has to call this, and gets it."""
    if not isinstance(tensor, DTensor):
        return tensor
    if tensor.dtype == torch.int16:  # which gloo doesn't carry: as other 16 bits
        return whole(sharded(tensor.to_local().view(torch.bfloat16), tensor)).view(torch.int16)
    return tensor.full_tensor()


def part(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What this process would hold of the whole `tensor`, (as many numbers as `like` in all), were it sharded as `like`."""
    if not isinstance(like, DTensor):
        return tensor
    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    return tensor.view(like.shape)[offset[0] : offset[0] + shape[0]].clone()  # a view would keep the whole in memory


def sharded(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`tensor`, which has a number for each that this process holds of `like`, as a part of a tensor like that."""
    if not isinstance(like, DTensor):
        return tensor
    own = tensor.view(like.to_local().shape)
    return DTensor.from_local(
        own, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
