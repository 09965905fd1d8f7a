"""What modules are called with while a model runs, which of them share an input, and what is near enough to their results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import nn


class Tolerance(NamedTuple):
    """Relative differences that rounding alone stays below, where the same is computed in another order."""

    layer: float
    """Of a layer's result, as a share of what the layer adds."""
    model: float
    """Of what the head is given, through many layers."""
    leak: float
    """Of two forwards of one shape, which are equal to the bit unless tokens share experts."""


TOLERANCE = {
    torch.float32: Tolerance(layer=1e-4, model=1e-3, leak=1e-4),
    torch.bfloat16: Tolerance(layer=0.02, model=0.1, leak=0.02),
    torch.float16: Tolerance(layer=0.003, model=0.02, leak=0.002),
}


class Call(NamedTuple):
    """One call of a module."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


@contextmanager
def recorded_calls(modules: Iterable[nn.Module]) -> Iterator[list[Call]]:
    """Record every call of `modules` within the block, in the order in which they return."""
    calls: list[Call] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        calls.append(Call(module, args, kwargs, result))

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(record, with_kwargs=True).remove)
        yield calls


def sharing_input(calls: Iterable[Call]) -> Iterator[tuple[list[nn.Module], torch.Tensor]]:
    """Modules that were given the very same tensor in consecutive calls, together, and that tensor.

    A call without a positional argument is left out.
    """
    for _, group in groupby((call for call in calls if call.args), lambda call: id(call.args[0])):
        alike = list(group)
        yield [call.module for call in alike], alike[0].args[0]
