"""Whether `lora.target_modules` and `lora.r` fit the model, and whether what they ask for would be trained."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from finetune import params
from finetune.errors import UserError
from finetune.kernels.loss import head_inputs
from finetune.models.probe import in_training_precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel


ADAPTABLE = (nn.Linear, Conv1D, nn.Embedding)
"""Modules that adapters are put on here."""


def check_names(model: PreTrainedModel, targets: str | list[str]) -> None:
    """Raise UserError if a name or pattern of `targets` fits no module of `model`, or one that has no matrix.

    peft raises only if none of them fits, and passes over the rest.
    """
    if targets == "all-linear":
        return
    for target in [targets] if isinstance(targets, str) else targets:
        modules = [(name, module) for name, module in model.named_modules() if name]
        meant = [module for name, module in modules if _is_meant(name, target, isinstance(targets, str))]
        if not meant:
            raise UserError(f"lora.target_modules: the model has no module {target!r}; there are {_kinds(model)}")
        odd = [type(module).__name__ for module in meant if not isinstance(module, ADAPTABLE)]
        if odd:
            raise UserError(
                f"lora.target_modules: {target!r} is a {odd[0]}, which has no matrix of its own to adapt; there are "
                f"{_kinds(model)}"
            )


def check_head_and_rank(model: PeftModel, lora: params.Lora) -> None:
    """Raise UserError if the head of `model` is adapted, or if `lora.r` is more than any adapted matrix can use."""
    adapted = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    head = model.get_output_embeddings()
    if any(layer is head for layer in adapted.values()):
        raise UserError(
            "lora.target_modules: takes in the head over the vocabulary, which is never adapted here; leave it out"
        )
    widest = max(map(_most_rank, adapted.values()))
    if lora.r > widest:
        raise UserError(f"lora.r: {lora.r} is more than the rank of any adapted matrix, {widest} at most; lower it")


def check_reached(model: PreTrainedModel | PeftModel, ids: list[int]) -> None:
    """Raise UserError if none of the adapters of one name gets a gradient from the tokens `ids`.

    An expert may go without, since no token chose it; all experts may not. A model without adapters is let pass.
    """
    if not isinstance(model, PeftModel):
        return
    before = model.training
    model.eval()
    # Through the model's own layers: as steps they would lay out memory for a backward pass that may never come so again.
    with in_training_precision(model):
        hidden = head_inputs(model, input_ids=torch.tensor([ids], device=model.device))
    hidden.float().square().sum().backward()
    reached: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = name.split(".lora_")[0].rsplit(".", 1)[-1]
            reached[kind] = reached.get(kind, False) or parameter.grad is not None
    model.zero_grad()
    model.train(before)
    idle = [kind for kind, has_gradient in reached.items() if not has_gradient]
    if idle:
        raise UserError(
            f"lora.target_modules: an adapter on {idle[0]} would never be trained, since the model doesn't call that "
            f"module; leave it out"
        )


def _most_rank(layer: BaseTunerLayer) -> int:
    """The smaller side of the matrix that `layer` adapts, or of the largest of its matrices."""
    return max(min(_shape(weight)) for weight in layer.get_base_layer().parameters() if len(_shape(weight)) > 1)


def _shape(weight: nn.Parameter) -> tuple[int, ...]:
    """The last two dimensions: experts lie one on another, and 4 bits in blocks."""
    state = getattr(weight, "quant_state", None)
    return tuple(weight.shape if state is None else state.shape)[-2:]


def _is_meant(name: str, target: str, is_pattern: bool) -> bool:
    """As peft compares: text as a pattern of the whole path; an entry of a list as the path, or its end."""
    if not is_pattern:
        return name == target or name.endswith(f".{target}")
    try:
        return re.fullmatch(target, name) is not None
    except re.error as error:
        raise UserError(f"lora.target_modules: {target!r} is no regular expression ({error})") from None


def _kinds(model: PreTrainedModel) -> str:
    """The names of `model`'s linear layers, each once, without the head."""
    head = model.get_output_embeddings()
    names = {
        name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }
    return ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
