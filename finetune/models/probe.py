"""What is computed here compared with the model's own forward pass, on numbers, before anything is trained.

Names don't tell what a model does: a convolution that reaches into the sequence before, a window, a cap on the logits
each goes by many. So a model is tried, as it will train, on the longest and the shortest sequence of its data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import linear

from finetune.device import compute_dtype, is_out_of_memory
from finetune.errors import UserError
from finetune.kernels.loss import head_inputs, packed_head_inputs
from finetune.kernels.packing import micro_batches, pack
from finetune.models.supported import first_line

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    Model = PreTrainedModel | PeftModel

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Difference of what the head is given, as a share of its size: rounding alone, through many layers, is less."""

LEAK = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 2e-3}
"""The same for two passes of one shape, equal to the bit unless tokens share experts."""


def check(model: Model, rows: list[list[int]]) -> None:
    """Raise UserError if the loss here isn't that of `model` itself, on the longest and the shortest of `rows`.

    `rows` are token ids. Holds for a sequence alone in its pass; `can_be_packed` tells of several.
    """
    with _still(model), _refusing(model):
        _check_head(model, rows[0][:2])
        short, long = _extremes(rows)
        for ids, advice in ((short, "choose another"), (long, "lower data.max_length, or choose another")):
            own = head_inputs(model, input_ids=torch.tensor([ids], device=model.device))
            off = _typical(_difference(_packed(model, [ids]), own[0]))
            if not off < TOLERANCE[compute_dtype()]:
                raise UserError(
                    f"model.source: {model.config.model_type} models can't be trained here: on {len(ids)} tokens the "
                    f"result is {off:.0%} off the model's own; {advice}"
                )


def can_be_packed(model: Model, rows: list[list[int]]) -> bool:
    """Whether sequences that share a pass come out as each does alone, none hearing of the one before."""
    short, long = _extremes(rows)
    other = [(token + 1) % len(model.get_input_embeddings().weight) for token in short]
    with _still(model):
        together = _packed(model, [long, short])
        apart = torch.cat([_packed(model, [long]), _packed(model, [short])])
        if not _typical(_difference(together, apart)) < TOLERANCE[compute_dtype()]:
            return False
        # What a convolution lets through reaches few tokens, and what is typical of all wouldn't tell.
        after = [_packed(model, [before, short])[len(short) :] for before in (short, other)]
        return bool(_difference(*after).max() < LEAK[compute_dtype()])


def outcome(model: Model, ids: list[int]) -> torch.Tensor:
    """What the head is given for the tokens `ids`, (tokens, width): the same to the bit as long as nothing is trained."""
    with _still(model):
        return _packed(model, [ids])


def check_vocabulary(model: Model, rows: list[list[int]], padding: int) -> None:
    """Raise UserError if a token of `rows`, or the one that pads prompts, is none of the model's."""
    known, highest = len(model.get_input_embeddings().weight), max(padding, *map(max, rows))
    if highest >= known:
        raise UserError(
            f"model.source: the tokenizer gives token {highest}, but the model has embeddings for 0 to {known - 1} only; "
            f"take the tokenizer that belongs to the model"
        )


def _extremes(rows: list[list[int]]) -> list[list[int]]:
    return [min(rows, key=len), max(rows, key=len)]


@contextmanager
def _still(model: Model) -> Iterator[None]:
    """No dropout, no gradients, and the precision of training."""
    before = model.training
    model.eval()
    dtype = compute_dtype()
    with torch.no_grad(), torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32):
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


def _packed(model: Model, rows: list[list[int]]) -> torch.Tensor:
    """What the head is given for `rows` in one pass, (tokens, width), filler left out."""
    tokens = sum(map(len, rows))
    (batch,) = micro_batches(pack([{"input_ids": ids, "labels": ids} for ids in rows]), tokens)
    return packed_head_inputs(model, {key: value.to(model.device) for key, value in batch.items()})[0, :tokens]


def _difference(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Length of the difference as a share of the expected length, of each token."""
    found, expected = found.float(), expected.float()
    return (found - expected).norm(dim=-1) / expected.norm(dim=-1)


def _typical(differences: torch.Tensor) -> float:
    """The median, of all tokens or of the last ones if it is more: a window shows there alone.

    Not the mean: where experts are chosen, rounding sends a token to another now and then, which says nothing.
    """
    return max(differences.median().item(), differences[-8:].median().item())


def _check_head(model: Model, ids: list[int]) -> None:
    """The loss multiplies by the head's weight and adds its bias: the model must do that, and nothing after it."""
    head = model.get_output_embeddings()
    if head is None or getattr(head, "weight", None) is None:
        raise UserError(f"model.source: {model.config.model_type} models have no head over the vocabulary; choose another")
    planted = torch.linspace(-100, 100, len(ids) * len(head.weight), dtype=head.weight.dtype, device=head.weight.device)
    planted = planted.view(1, len(ids), -1)
    given: list[torch.Tensor] = []
    made: list[torch.Tensor] = []

    def plant(module: nn.Module, inputs: tuple[torch.Tensor], result: torch.Tensor) -> torch.Tensor:
        given.append(inputs[0])
        made.append(result)
        return planted

    handle = head.register_forward_hook(plant)
    try:
        logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
    finally:
        handle.remove()
    if not torch.equal(logits.float(), planted.float()):
        raise UserError(
            f"model.source: {model.config.model_type} models change their logits after the head (a cap, a scale, "
            f"a mask), which the loss here doesn't know; choose another"
        )
    expected = linear(given[0], head.weight.to(given[0].dtype), head.bias)
    if len(made) != 1 or not _typical(_difference(made[0], expected).flatten()) < TOLERANCE[compute_dtype()]:
        raise UserError(
            f"model.source: the head of {model.config.model_type} models isn't one matrix product, "
            f"which the loss here takes it for; choose another"
        )
