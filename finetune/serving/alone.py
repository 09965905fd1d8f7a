"""Answers by transformers, whole and one at a time, for models that our decoding doesn't fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch

from finetune.serving.request import Request

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@torch.no_grad()
def answer_alone(model: PreTrainedModel | PeftModel, request: Request) -> Request:
    """`request`, with all tokens of its answer made."""
    from transformers import GenerationConfig

    sampling = request.sampling
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    settings = GenerationConfig(
        max_new_tokens=request.max_new_tokens,
        eos_token_id=sorted(request.ends),
        pad_token_id=min(request.ends),
        do_sample=sampling.temperature > 0,
        **drawn if sampling.temperature > 0 else {},
    )
    ids = torch.tensor([request.prompt], device=model.device)
    with torch.random.fork_rng(enabled=sampling.seed is not None):
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        made = cast("Callable[..., torch.Tensor]", model.generate)(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
        )
    request.made += made[0, len(request.prompt) :].tolist()
    return request
