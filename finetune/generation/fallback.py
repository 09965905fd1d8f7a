"""Whole answers by transformers' own `generate`, for models that the engine doesn't fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from finetune.generation.request import Request


@torch.no_grad()
def answer(model: PreTrainedModel | PeftModel, requests: Sequence[Request]) -> None:
    """Add all tokens of their answers to `requests`, as one batch, padded on the left.

    The first one's settings (length, end tokens, sampling) hold for all.
    """
    from transformers import GenerationConfig

    first, sampling = requests[0], requests[0].sampling
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    padding = min(first.ends)
    settings = GenerationConfig(
        max_new_tokens=first.max_new_tokens,
        eos_token_id=sorted(first.ends),
        pad_token_id=padding,
        do_sample=sampling.temperature > 0,
        **drawn if sampling.temperature > 0 else {},
    )
    longest = max(len(one.prompt) for one in requests)
    ids = torch.tensor([[padding] * (longest - len(one.prompt)) + one.prompt for one in requests], device=model.device)
    mask = torch.tensor([[int(place >= longest - len(one.prompt)) for place in range(longest)] for one in requests])
    with torch.random.fork_rng(enabled=sampling.seed is not None):
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        made = cast("Callable[..., torch.Tensor]", model.generate)(
            input_ids=ids, attention_mask=mask.to(ids.device), generation_config=settings
        )
    for request, row in zip(requests, made[:, longest:].tolist(), strict=True):
        for token in row:
            request.made.append(token)
            if request.reason:  # what follows in the row is padding
                break
