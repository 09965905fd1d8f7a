"""The inputs of each linear layer, collected layer by layer: each is fed by the layers before it as they are by then.

A caller that rounds each layer as it comes lets the later ones make up for the errors of the earlier ones (Frantar et
al. 2023, section 3.3).
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
    """The linear layers of a model that share an input, and its second moment."""

    modules: list[nn.Linear | Conv1D]
    hessian: torch.Tensor
    """The mean of x xT over all tokens, (columns, columns), fp32."""


@dataclass
class _Example:
    """One example in the walk: its hidden states before the current layer, and what else each layer is called with."""

    hidden: torch.Tensor
    tokens: int
    """The rest of the hidden states' rows fill them up."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def through(self, number: int, layer: nn.Module) -> torch.Tensor:
        positional, named = self.calls[number]
        given = layer(self.hidden, *positional, **named)
        return given[0] if isinstance(given, tuple) else given


def can_be_walked(model: PreTrainedModel, row: list[int]) -> bool:
    """Whether each layer hands its result, unchanged, to the next one; tried on the token ids `row` of one example."""
    layers = layer_stack(model)
    with torch.no_grad(), recorded_calls(layers) as calls:
        example = _started(model, layers, row)
    seen = [call.args[0] for call in calls if call.args]
    if len(example.calls) != len(layers) or len(seen) != len(layers):
        return False
    for number, layer in enumerate(layers[:-1]):
        example.hidden = example.through(number, layer)
        if not torch.equal(example.hidden, seen[number + 1]):
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
        for example in examples:
            example.hidden = example.through(number, layer)


def _started(model: PreTrainedModel, layers: list[nn.Module], row: list[int]) -> _Example:
    """An example before the first layer, from a forward in which every layer's call is recorded."""
    batch = _single(row, model.device)
    with recorded_calls(layers) as calls:
        packed_head_inputs(model, batch)
    hidden = calls[0].args[0] if calls and calls[0].args else torch.empty(0)
    return _Example(hidden, len(row), [(call.args[1:], call.kwargs) for call in calls])


def _single(row: list[int], device: torch.device) -> Batch:
    (batch,) = micro_batches(pack([{"input_ids": row, "labels": row}]), len(row))
    return {key: value.to(device) for key, value in batch.items()}


def _inputs(layer: nn.Module, number: int, examples: list[_Example]) -> list[Inputs]:
    linear = [module for module in layer.modules() if isinstance(module, nn.Linear | Conv1D)]
    sums: dict[tuple[nn.Module, ...], torch.Tensor] = {}
    with recorded_calls(linear) as calls:
        for example in examples:
            calls.clear()
            example.through(number, layer)
            for alike, x in sharing_input(calls):
                modules = tuple(dict.fromkeys(alike))
                # The filling comes last. (An expert sees some of the tokens, and keeps it.)
                rows = x.reshape(-1, x.shape[-1])[: example.tokens].float()
                sums[modules] = sums[modules].addmm_(rows.t(), rows) if modules in sums else rows.t() @ rows
    tokens = sum(example.tokens for example in examples)
    return [Inputs(cast("list[nn.Linear | Conv1D]", list(alike)), total / tokens) for alike, total in sums.items()]
