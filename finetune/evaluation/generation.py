"""Greedy decoding in batches with a KV cache."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import TYPE_CHECKING, cast

import torch

from finetune.errors import UserError
from finetune.models.ends import end_tokens

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


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
    greedy = _greedy(model, tokenizer, max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer.pad(
            {"input_ids": [prompts[index] for index in chosen]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        output = cast("Callable[..., torch.Tensor]", model.generate)(**batch, generation_config=greedy)
        made = [_before_end(ids, greedy.eos_token_id) for ids in output[:, batch["input_ids"].shape[1] :].tolist()]
        texts = tokenizer.batch_decode(made, skip_special_tokens=True)
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
    greedy = _greedy(model, tokenizer, max_new_tokens)

    class AnswerStreamer(TextStreamer):
        def put(self, value: torch.Tensor) -> None:
            super().put(value if self.next_tokens_are_prompt else value[~torch.isin(value, self.ends)])

        ends = torch.tensor(greedy.eos_token_id)

    ids = torch.tensor([prompt], device=model.device)
    streamer = AnswerStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    cast("Callable[..., torch.Tensor]", model.generate)(
        input_ids=ids, attention_mask=torch.ones_like(ids), streamer=streamer, generation_config=greedy
    )


def _check_fits(model: PreTrainedModel | PeftModel, prompt_tokens: int, max_new_tokens: int) -> None:
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and prompt_tokens + max_new_tokens > positions:
        raise UserError(
            f"eval.max_new_tokens: {max_new_tokens} tokens after a prompt of {prompt_tokens} are more than the model's "
            f"{positions} positions; lower it"
        )


def _greedy(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> GenerationConfig:
    """What generation means here: the likeliest token each time, up to an end token of the model or the tokenizer.

    Nothing else reaches it from the model's folder: `models.ends.keep_ends_alone` has seen to that at load.
    """
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted({tokenizer.eos_token_id, *end_tokens(model)}),
    )


def _before_end(ids: list[int], ends: list[int]) -> list[int]:
    """The answer's tokens: an end token needn't be a special one, which decoding would leave out."""
    return list(takewhile(lambda token: token not in ends, ids))
