"""A comparison, on numbers, of what is computed here with the model's own forward, before hours of work.

Names don't tell what a model does: a convolution that reaches into the sequence before, a window, a cap on the logits
each have many. So a model is tried, as it will train, on the shortest and the longest sequence of its data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import linear

from finetune.data import prepared
from finetune.device import compute_dtype, is_out_of_memory
from finetune.errors import UserError, first_line
from finetune.kernels.calls import TOLERANCE
from finetune.kernels.loss import head_inputs, packed_head_inputs
from finetune.kernels.packing import micro_batches, pack

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from finetune.distributed.wrapped import Passes

    Model = PreTrainedModel | PeftModel


def check_model(model: Model, split: Dataset, padding: int, *, adapters: bool = False) -> bool:
    """Whether rows of `split` that share a micro-batch come out of `model` as each does alone.

    Tried by four forwards on the shortest and the longest row. If one row changes another, each can still go through
    alone. Raises UserError if the loss here isn't that of `model` even then, if a token of the split or the token id
    `padding` has no embedding, or, with `adapters`, if one of them would never be trained.
    """
    shortest, longest = prepared.extremes(split)
    _check_vocabulary(model, max(prepared.highest_token(split), padding))
    with _refusing(model):
        own = {tuple(shortest): _own_and_head(model, shortest, adapters=adapters)}
        with _still(model):
            if tuple(longest) not in own:
                own[tuple(longest)] = _own(model, longest)
            if _is_packable(model, own, shortest, longest):
                return True
            _check_alone(model, own)
            return False


def _is_packable(
    model: Model, own: dict[tuple[int, ...], torch.Tensor], shortest: Sequence[int], longest: Sequence[int]
) -> bool:
    """Whether both sequences, packed, come out as their `own`, and the second whatever the first is.

    That takes two forwards of one shape: what a convolution lets through reaches few tokens, and rounding would hide it.
    """
    before = len(shortest)
    other = [(token + 1) % _vocabulary(model) for token in shortest]
    first = _packed(model, [shortest, longest])
    near = _is_near(first[:before], own[tuple(shortest)]) and _is_near(first[before:], own[tuple(longest)])
    if not near:
        return False
    second = _packed(model, [other, longest])
    return bool(_difference(second[before:], first[before:]).max() < TOLERANCE[compute_dtype()].leak)


def _check_alone(model: Model, own: dict[tuple[int, ...], torch.Tensor]) -> None:
    shortest = min(own, key=len)
    for ids, expected in own.items():
        found = _packed(model, [ids])
        if not _is_near(found, expected):
            advice = "choose another" if ids == shortest else "lower data.max_length, or choose another"
            raise UserError(
                f"model.source: {model.config.model_type} models can't be trained here: on {len(ids)} tokens the "
                f"result is {_typical(_difference(found, expected)):.0%} off the model's own; {advice}"
            )


def _is_near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return _typical(_difference(found, expected)) < TOLERANCE[compute_dtype()].model


def outcome(model: Model, ids: Sequence[int], passes: Passes) -> torch.Tensor:
    """What the head is given for the tokens `ids`, (tokens, width): the same to the bit as long as nothing is trained."""
    with _still(model):
        return passes(_packed, [ids])


def _check_vocabulary(model: Model, highest: int) -> None:
    known = _vocabulary(model)
    if highest >= known:
        raise UserError(
            f"model.source: the tokenizer gives token {highest}, but the model has embeddings for 0 to {known - 1} only; "
            f"take the tokenizer that belongs to the model"
        )


def _vocabulary(model: Model) -> int:
    return len(cast(torch.Tensor, model.get_input_embeddings().weight))


def in_training_precision(model: Model) -> torch.autocast:
    """The autocast under which Trainer runs `model`."""
    dtype = compute_dtype()
    return torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32)


@contextmanager
def _still(model: Model, *, gradients: bool = False) -> Iterator[None]:
    """No dropout, no gradients unless asked for, and the precision of training."""
    before = model.training
    model.eval()
    with torch.set_grad_enabled(gradients), in_training_precision(model):
        yield
    model.train(before)


@contextmanager
def _refusing(model: Model) -> Iterator[None]:
    """Turn the errors of a model that can't be called like this, which are of many kinds, into one UserError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        raise UserError(
            f"model.source: {model.config.model_type} models can't be trained here "
            f"({type(error).__name__}: {first_line(error)}); choose another"
        ) from error


def _packed(model: Model, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """What the head is given for `rows` in one forward, (tokens, width), filler left out."""
    tokens = sum(map(len, rows))
    (batch,) = micro_batches(pack([{"input_ids": list(ids), "labels": list(ids)} for ids in rows]), tokens)
    return packed_head_inputs(model, {key: value.to(model.device) for key, value in batch.items()})[0, :tokens]


def _difference(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Length of the difference as a share of the expected length, of each token."""
    found, expected = found.float(), expected.float()
    return (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-30)


def _typical(differences: torch.Tensor) -> float:
    """The median, of all tokens or of the last ones if it is more: a window shows there alone.

    Not the mean: where experts are chosen, rounding sends a token to another now and then, which says nothing.
    """
    return max(differences.median().item(), differences[-8:].median().item())


def _own(model: Model, ids: Sequence[int]) -> torch.Tensor:
    """What the head is given for `ids` when the model has its own way with positions and mask, (tokens, width)."""
    return head_inputs(model, input_ids=torch.tensor([ids], device=model.device))[0]


def _own_and_head(model: Model, ids: Sequence[int], *, adapters: bool) -> torch.Tensor:
    """`_own`; raises UserError unless the logits are the head's product, as which the loss computes them.

    With `adapters` a backward pass follows; raises UserError if it leaves an adapter without a gradient.
    """
    # Through the model's own layers, not packed: those made here would lay out memory for a backward pass.
    with _still(model, gradients=adapters and isinstance(model, PeftModel)):
        given, made, logits = _with_planted_logits(model, ids)
    hidden = given.detach()
    with _still(model):
        _check_head(model, hidden, made, logits)
    if given.requires_grad:
        given.float().square().sum().backward()
        _check_reached(model)
    return hidden[0]


def _with_planted_logits(model: Model, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the head is given for `ids`, what it makes of it, and the logits if other numbers take the place of that."""
    head = model.get_output_embeddings()
    if head is None or getattr(head, "weight", None) is None:
        raise UserError(
            f"model.source: {model.config.model_type} models have no head over the vocabulary; choose another"
        )
    seen: list[torch.Tensor] = []

    def plant(module: nn.Module, inputs: tuple[torch.Tensor], result: torch.Tensor) -> torch.Tensor:
        seen.extend([inputs[0], result])
        return _planted(result)

    handle = head.register_forward_hook(plant)
    try:
        logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
    finally:
        handle.remove()
    return seen[0], seen[1], logits


def _planted(like: torch.Tensor) -> torch.Tensor:
    """Numbers that any change of logits would show in, in the form of `like`."""
    return torch.linspace(-100, 100, like.numel(), dtype=like.dtype, device=like.device).view_as(like)


def _check_head(model: Model, hidden: torch.Tensor, made: torch.Tensor, logits: torch.Tensor) -> None:
    """`made` is what the head made of `hidden`; `logits` what the model made of numbers planted in its place."""
    head = model.get_output_embeddings()
    if not hidden.isfinite().all():
        raise UserError(
            f"model.source: on {hidden.shape[1]} tokens the model's result is no finite number; its weights are damaged"
        )
    if not torch.equal(logits.float(), _planted(made).float()):
        raise UserError(
            f"model.source: {model.config.model_type} models change their logits after the head (a cap, a scale, "
            f"a mask), which the loss here doesn't know; choose another"
        )
    if not _is_near(made[0], linear(hidden, head.weight.to(hidden.dtype), head.bias)[0]):
        raise UserError(
            f"model.source: the head of {model.config.model_type} models isn't one matrix product, "
            f"which the loss here takes it for; choose another"
        )


def _check_reached(model: nn.Module) -> None:
    """Raise UserError if none of the adapters of one name has a gradient, and drop the gradients.

    An expert may go without, since no token chose it; all experts may not.
    """
    reached: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = name.split(".lora_")[0].rsplit(".", 1)[-1]
            reached[kind] = reached.get(kind, False) or parameter.grad is not None
    model.zero_grad()
    idle = [kind for kind, has_gradient in reached.items() if not has_gradient]
    if idle:
        raise UserError(
            f"lora.target_modules: an adapter on {idle[0]} would never be trained, since the model doesn't call that "
            f"module; leave it out"
        )
