"""What is computed here compared with the model's own forward pass, on numbers, before anything is trained.

Names don't tell what a model does: a convolution that reaches into the sequence before, a window, a cap on the logits
each goes by many. So a model is tried, as it will train, on the longest and the shortest sequence of its data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn.functional import linear

from finetune.device import compute_dtype, is_out_of_memory
from finetune.errors import UserError, first_line
from finetune.kernels.loss import head_inputs, packed_head_inputs
from finetune.kernels.packing import micro_batches, pack

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from finetune.distributed.wrapped import Passes

    Model = PreTrainedModel | PeftModel

Ids = tuple[int, ...]

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Difference of what the head is given, as a share of its size: rounding alone, through many layers, is less."""

LEAK = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 2e-3}
"""The same for two passes of one shape, equal to the bit unless tokens share experts."""


def can_be_packed(model: Model, rows: list[list[int]]) -> bool:
    """Whether sequences that share a pass come out as each does alone in `model` itself.

    `rows` are token ids, of which the longest and the shortest are tried. If they don't, because one hears of another,
    each can still go through alone. Raises UserError if the loss here isn't that of `model` then either.
    """
    with _still(model), _refusing(model):
        short, long = _extremes(rows)
        own = {short: _own_and_head(model, short), long: _own(model, long)}
        together = _packed(model, [long, short])
        found = {long: together[: len(long)], short: together[len(long) :]}
        if all(_is_near(found[ids], own[ids]) for ids in own) and not _leaks(model, short):
            return True
        _check_alone(model, own)
        return False


def _check_alone(model: Model, own: dict[Ids, torch.Tensor]) -> None:
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
    return _typical(_difference(found, expected)) < TOLERANCE[compute_dtype()]


def _leaks(model: Model, ids: Ids) -> bool:
    """Whether what is before `ids` in a pass changes anything behind it.

    Two passes of one shape, because what a convolution lets through reaches few tokens: rounding would hide it.
    """
    other = tuple((token + 1) % _vocabulary(model) for token in ids)
    after = [_packed(model, [before, ids])[len(ids) :] for before in (ids, other)]
    return not _difference(*after).max() < LEAK[compute_dtype()]


def outcome(model: Model, ids: Sequence[int], passes: Passes) -> torch.Tensor:
    """What the head is given for the tokens `ids`, (tokens, width): the same to the bit as long as nothing is trained."""
    with _still(model):
        return passes(_packed, [ids])


def check_vocabulary(model: Model, highest: int) -> None:
    """Raise UserError if `highest`, the highest token id of the data or of the padding, is none of the model's."""
    known = _vocabulary(model)
    if highest >= known:
        raise UserError(
            f"model.source: the tokenizer gives token {highest}, but the model has embeddings for 0 to {known - 1} only; "
            f"take the tokenizer that belongs to the model"
        )


def _vocabulary(model: Model) -> int:
    return len(cast(torch.Tensor, model.get_input_embeddings().weight))


def _extremes(rows: list[list[int]]) -> tuple[Ids, Ids]:
    """The shortest of `rows` and the longest."""
    ordered = sorted(rows, key=len)
    return tuple(ordered[0]), tuple(ordered[-1])


def in_training_precision(model: Model) -> torch.autocast:
    """The autocast under which Trainer runs `model`."""
    dtype = compute_dtype()
    return torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32)


@contextmanager
def _still(model: Model) -> Iterator[None]:
    """No dropout, no gradients, and the precision of training."""
    before = model.training
    model.eval()
    with torch.no_grad(), in_training_precision(model):
        yield
    model.train(before)


@contextmanager
def _refusing(model: Model) -> Iterator[None]:
    """What a model can't be asked it answers with all kinds of errors, none of them about the user's mistake."""
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
    """What the head is given for `rows` in one pass, (tokens, width), filler left out."""
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


def _own(model: Model, ids: Ids) -> torch.Tensor:
    """What the head is given for `ids` when the model has its own way with positions and mask, (tokens, width)."""
    return head_inputs(model, input_ids=torch.tensor([ids], device=model.device))[0]


def _own_and_head(model: Model, ids: Ids) -> torch.Tensor:
    """`_own`; raises UserError unless the logits are the head's product, as which the loss computes them."""
    head = model.get_output_embeddings()
    if head is None or getattr(head, "weight", None) is None:
        raise UserError(
            f"model.source: {model.config.model_type} models have no head over the vocabulary; choose another"
        )
    given: list[torch.Tensor] = []
    made: list[torch.Tensor] = []

    def plant(module: nn.Module, inputs: tuple[torch.Tensor], result: torch.Tensor) -> torch.Tensor:
        given.append(inputs[0])
        made.append(result)
        return torch.linspace(-100, 100, result.numel(), dtype=result.dtype, device=result.device).view_as(result)

    handle = head.register_forward_hook(plant)
    try:
        logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
    finally:
        handle.remove()
    if not given[0].isfinite().all():
        raise UserError(
            f"model.source: on {len(ids)} tokens the model's result is no finite number; its weights are damaged"
        )
    if not torch.equal(logits.float(), plant(head, (given[0],), made[0]).float()):
        raise UserError(
            f"model.source: {model.config.model_type} models change their logits after the head (a cap, a scale, "
            f"a mask), which the loss here doesn't know; choose another"
        )
    if not _is_near(made[0][0], linear(given[0], head.weight.to(given[0].dtype), head.bias)[0]):
        raise UserError(
            f"model.source: the head of {model.config.model_type} models isn't one matrix product, "
            f"which the loss here takes it for; choose another"
        )
    return given[0][0]
