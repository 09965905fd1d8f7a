"""A model made ready for the engine, if the engine computes what the model's own forward does.

Names don't tell which models fit, so the two are compared on numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear

from finetune.device import is_out_of_memory
from finetune.generation.engine import Decoder, base_model
from finetune.generation.joint_layers import OWN, JointLayers, joint
from finetune.generation.kv_cache import attending_to_cache
from finetune.kernels.calls import TOLERANCE, recorded_calls
from finetune.kernels.loss import head_inputs

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@contextmanager
def prepared(
    model: PreTrainedModel | PeftModel, prompts: list[list[int]], max_new_tokens: int
) -> Iterator[JointLayers | None]:
    """Make `model` ready for `Engine` within the block; None, and nothing changed, if the answers would differ from its own.

    Tried on the longest and the shortest of `prompts`, lengthened as far as answers may reach.
    """
    base = base_model(model)
    short, long = min(prompts, key=len), max(prompts, key=len)
    tried = [_lengthened(long, len(long) + max_new_tokens), _lengthened(short, len(short) + 1)]
    with ExitStack() as undo:
        try:
            ready = _ready(base, tried, undo)
        except Exception as error:  # models raise all kinds of errors for what they don't support
            if is_out_of_memory(error):
                raise
            ready = None
        if ready is None:
            undo.close()
        yield ready


def _ready(model: PreTrainedModel, tried: list[list[int]], undo: ExitStack) -> JointLayers | None:
    """The joint layers of `model`, until `undo`; None if the engine's numbers differ on `tried` (token ids)."""
    long = head_inputs(model, input_ids=_ids(model, tried[0]))[0, -2:]
    undo.enter_context(attending_to_cache(model))
    head: Any = model.get_output_embeddings()
    logits: list[torch.Tensor] = []
    with recorded_calls([head]) as calls:
        layers = undo.enter_context(
            joint(model, lambda: logits.append(model(input_ids=_ids(model, tried[1]), use_cache=False).logits[0, -2:]))
        )
    short = calls[0].args[0][0, -2:]
    if not _is_near(linear(short, head.weight, head.bias), logits[0]):
        return None
    return layers if _is_near(_in_slots(model, tried), torch.cat([long, short])) else None


def _lengthened(ids: list[int], size: int) -> list[int]:
    return (ids * -(-size // len(ids)))[:size]


def _ids(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return torch.tensor([ids], device=model.device)


def _in_slots(model: PreTrainedModel, rows: list[list[int]]) -> torch.Tensor:
    """What the head is given at the last two tokens of each of `rows`, of which the last comes in a forward alone."""
    decoder = Decoder(model, len(rows))
    before = decoder.enter([ids[:-1] for ids in rows], [OWN] * len(rows))
    last = decoder.step([ids[-1] for ids in rows])
    return torch.stack([before, last], 1).flatten(0, 1)


def _is_near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether each row's difference is small enough, relative to the row, to be rounding."""
    difference = (found.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)
    return bool((difference < TOLERANCE[expected.dtype].model).all())
