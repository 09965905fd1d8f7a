"""What each linear layer is given: the model is walked layer by layer, each fed by those before it as they are by then.

A caller that rounds the layers as they come so has the later ones make up for the earlier ones' errors (Frantar et al.
2023, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune.kernels.loss import packed_head_inputs
from finetune.kernels.packing import Batch, micro_batches, pack
from finetune.models.loading import layer_stack


@dataclass(frozen=True)
class Inputs:
    """The linear layers of a model that share an input, and what is known of it."""

    modules: list[nn.Linear | Conv1D]
    hessian: torch.Tensor
    """The mean of x xT over all tokens, (columns, columns), fp32."""


@dataclass
class _Passing:
    """One example on its way: its hidden states before the layer at hand, and what else each layer is called with."""

    hidden: torch.Tensor
    tokens: int
    """The rest of the hidden states' rows fill them up."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def through(self, number: int, layer: nn.Module) -> torch.Tensor:
        positional, named = self.calls[number]
        given = layer(self.hidden, *positional, **named)
        return given[0] if isinstance(given, tuple) else given


def can_be_walked(model: PreTrainedModel, row: list[int]) -> bool:
    """Whether each layer's result is the next one's input, and nothing else: told by the numbers of one example."""
    layers = layer_stack(model)
    seen: list[torch.Tensor] = []
    with torch.no_grad(), ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(_given(layer, lambda positional, named: seen.extend(positional[:1])))
        passing = _started(model, layers, row)
        if len(passing.calls) != len(layers) or len(seen) != len(layers):
            return False
    for number, layer in enumerate(layers[:-1]):
        passing.hidden = passing.through(number, layer)
        if not torch.equal(passing.hidden, seen[number + 1]):
            return False
    return True


@torch.no_grad()
def walk(model: PreTrainedModel, rows: list[list[int]]) -> Iterator[Inputs]:
    """The linear layers of `model`, those that share an input together, in the order of the walk over `rows` (token ids).

    A module that none of `rows` reaches (an expert) is left out. Call only where `can_be_walked`.
    """
    layers = layer_stack(model)
    examples = [_started(model, layers, row) for row in rows]
    for number, layer in enumerate(layers):
        yield from _inputs(layer, number, examples)
        for passing in examples:
            passing.hidden = passing.through(number, layer)


def _started(model: PreTrainedModel, layers: list[nn.Module], row: list[int]) -> _Passing:
    """An example before the first layer, from a whole pass in which every layer's call is noted."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    batch = _alone(row, model.device)
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(_given(layer, lambda positional, named: calls.append((positional, named))))
        packed_head_inputs(model, batch)
    hidden = calls[0][0][0] if calls and calls[0][0] else torch.empty(0)
    return _Passing(hidden, len(row), [(positional[1:], named) for positional, named in calls])


def _alone(row: list[int], device: torch.device) -> Batch:
    (batch,) = micro_batches(pack([{"input_ids": row, "labels": row}]), len(row))
    return {key: value.to(device) for key, value in batch.items()}


@contextmanager
def _given(module: nn.Module, note: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """Have `note` called with what `module` is called with, while the block runs."""
    handle = module.register_forward_pre_hook(lambda _, positional, named: note(positional, named), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _inputs(layer: nn.Module, number: int, examples: list[_Passing]) -> list[Inputs]:
    linear = [module for module in layer.modules() if isinstance(module, nn.Linear | Conv1D)]
    given: dict[nn.Linear | Conv1D, torch.Tensor] = {}
    sums: dict[tuple[nn.Linear | Conv1D, ...], torch.Tensor] = {}
    with ExitStack() as hooks:
        for module in linear:
            hooks.enter_context(_given(module, partial(_keep_first, given, module)))
        for passing in examples:
            given.clear()
            passing.through(number, layer)
            for modules in _sharing(given):
                x = given[modules[0]]
                # The filling comes last. (An expert sees some of the tokens, and keeps it.)
                rows = x.reshape(-1, x.shape[-1])[: passing.tokens].float()
                sums[modules] = sums[modules].addmm_(rows.t(), rows) if modules in sums else rows.t() @ rows
    tokens = sum(passing.tokens for passing in examples)
    return [Inputs(list(modules), total / tokens) for modules, total in sums.items()]


def _keep_first(
    given: dict[nn.Linear | Conv1D, torch.Tensor],
    module: nn.Linear | Conv1D,
    positional: tuple[Any, ...],
    named: dict[str, Any],
) -> None:
    given[module] = positional[0]


def _sharing(given: dict[nn.Linear | Conv1D, torch.Tensor]) -> list[tuple[nn.Linear | Conv1D, ...]]:
    """The modules that were given the very same tensor, together."""
    together: dict[int, list[nn.Linear | Conv1D]] = {}
    for module, x in given.items():
        together.setdefault(id(x), []).append(module)
    return [tuple(modules) for modules in together.values()]
