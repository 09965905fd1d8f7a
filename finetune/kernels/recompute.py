"""Activations that are made again for the backward pass rather than kept."""

from collections.abc import Callable
from typing import Any

import torch


class Recompute:
    """How to make a tensor again from tensors that are kept anyway: `function(*tensors)`.

    A layer that wants the tensor in its backward pass keeps `tensors`, and calls what `for_user` gave it with them
    there. The result is shared by all layers that asked, and dropped after the last.
    """

    def __init__(self, function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> None:
        self.tensors = tensors
        # Apart, because a method of this object would hold `tensors` as well, and autograd couldn't free them.
        self._sharing = _Sharing(function)

    def for_user(self) -> Callable[..., torch.Tensor]:
        """The function that makes the tensor again, for one more user.

        It holds no tensor itself, so that autograd decides how long they live.
        """
        self._sharing.users += 1
        return self._sharing.recompute


class _Sharing:
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        self.function, self.users = function, 0
        self.made: torch.Tensor | None = None

    def recompute(self, *tensors: torch.Tensor) -> torch.Tensor:
        made = self.function(*tensors) if self.made is None else self.made
        self.users -= 1
        self.made = made if self.users else None
        return made


def attach(tensor: torch.Tensor, function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """Note on `tensor` how it can be made again."""
    noted: Any = tensor  # PyTorch's class declares no such attribute
    noted.recompute = Recompute(function, *(one.detach() for one in tensors))
    return tensor
