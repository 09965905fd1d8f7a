"""The tokens that end an answer: all that a base model's generation_config.json has a say in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from transformers import GenerationConfig

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def end_tokens(model: PreTrainedModel | PeftModel) -> list[int]:
    """Ids of the tokens with which `model` ends an answer, sorted."""
    ends = model.generation_config.eos_token_id
    return sorted({ends} if isinstance(ends, int) else set(ends or []))


def keep_ends_alone(model: PreTrainedModel) -> None:
    """Make `model` forget what its folder suggests for generation, but for the tokens by their part.

    Penalties, beams, minimal lengths and forced or suppressed tokens would change greedy answers without a word, and
    values that contradict each other can't be saved again.
    """
    told = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=told.bos_token_id, eos_token_id=told.eos_token_id, pad_token_id=told.pad_token_id
    )


def add_end_tokens(model: PreTrainedModel | PeftModel, ids: Iterable[int]) -> None:
    """Let `model` end its answers with these tokens as well."""
    ends = sorted({*end_tokens(model), *ids})
    model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends
