"""Greedy decoding in batches with a KV cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch

from finetune.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Answer each prompt (token ids) greedily; answers come in the prompts' order, stripped.

    Prompts of like length share a batch, padded on the left. `progress` gets the number done.
    Raises UserError if prompt and answer don't fit the model's positions.
    """
    _check_fits(model, max(map(len, prompts)), max_new_tokens)
    model.eval()
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer.pad(
            {"input_ids": [prompts[index] for index in chosen]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        output = cast("Callable[..., torch.Tensor]", model.generate)(**batch, **_greedy(tokenizer, max_new_tokens))
        texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            answers[index] = text.strip()
        progress(start + len(chosen))
    return answers


@torch.inference_mode()
def stream(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, prompt: list[int], max_new_tokens: int
) -> None:
    """Print the greedy answer to `prompt` (token ids) as it comes."""
    from transformers import TextStreamer

    _check_fits(model, len(prompt), max_new_tokens)
    model.eval()
    ids = torch.tensor([prompt], device=model.device)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    cast("Callable[..., torch.Tensor]", model.generate)(
        input_ids=ids, attention_mask=torch.ones_like(ids), streamer=streamer, **_greedy(tokenizer, max_new_tokens)
    )


def _check_fits(model: PreTrainedModel | PeftModel, prompt_tokens: int, max_new_tokens: int) -> None:
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and prompt_tokens + max_new_tokens > positions:
        raise UserError(
            f"eval.max_new_tokens: {max_new_tokens} tokens after a prompt of {prompt_tokens} are more than the model's "
            f"{positions} positions; lower it"
        )


def _greedy(tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> dict[str, Any]:
    """Arguments of `model.generate` for a greedy answer, whatever sampling the model's folder suggests."""
    return {
        "do_sample": False,
        "temperature": None,
        "top_p": None,
        "top_k": None,
        "max_new_tokens": max_new_tokens,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
