"""What each linear layer is given: the model is walked layer by layer, each fed by those before it as they are by then.

A caller that rounds the layers as they come so has the later ones make up for the earlier ones' errors (Frantar et al.
2023, section 3.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune.kernels.calls import recorded_calls, sharing_input
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
    with torch.no_grad(), recorded_calls(layers) as calls:
        passing = _started(model, layers, row)
    seen = [call.args[0] for call in calls if call.args]
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
    batch = _alone(row, model.device)
    with recorded_calls(layers) as calls:
        packed_head_inputs(model, batch)
    hidden = calls[0].args[0] if calls and calls[0].args else torch.empty(0)
    return _Passing(hidden, len(row), [(call.args[1:], call.kwargs) for call in calls])


def _alone(row: list[int], device: torch.device) -> Batch:
    (batch,) = micro_batches(pack([{"input_ids": row, "labels": row}]), len(row))
    return {key: value.to(device) for key, value in batch.items()}


def _inputs(layer: nn.Module, number: int, examples: list[_Passing]) -> list[Inputs]:
    linear = [module for module in layer.modules() if isinstance(module, nn.Linear | Conv1D)]
    sums: dict[tuple[nn.Module, ...], torch.Tensor] = {}
    with recorded_calls(linear) as calls:
        for passing in examples:
            calls.clear()
            passing.through(number, layer)
            for alike, x in sharing_input(calls):
                modules = tuple(dict.fromkeys(alike))
                # The filling comes last. (An expert sees some of the tokens, and keeps it.)
                rows = x.reshape(-1, x.shape[-1])[: passing.tokens].float()
                sums[modules] = sums[modules].addmm_(rows.t(), rows) if modules in sums else rows.t() @ rows
    tokens = sum(passing.tokens for passing in examples)
    return [Inputs(cast("list[nn.Linear | Conv1D]", list(alike)), total / tokens) for alike, total in sums.items()]
