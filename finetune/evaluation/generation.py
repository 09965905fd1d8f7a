"""Greedy answers to prompts: all of them, or one as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import TYPE_CHECKING, cast

import torch

from finetune.errors import UserError
from finetune.evaluation import decoding
from finetune.models.ends import end_tokens

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
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

    At most `batch_size` prompts are answered at a time. `progress` gets the number done, now and then and at the end.
    Raises UserError if prompt and answer don't fit the model's positions.
    """
    _check_fits(model, max(map(len, prompts)), max_new_tokens)
    model.eval()
    ends = _ends(model, tokenizer)
    made: list[list[int]] = [[] for _ in prompts]
    done = 0
    with decoding.prepared(model, prompts, max_new_tokens) as ready:
        if ready:
            coming = decoding.tokens(model, prompts, slots=batch_size, max_new_tokens=max_new_tokens, ends=ends)
        else:
            coming = _by_transformers(model, tokenizer, prompts, batch_size, max_new_tokens)
        for index, token in coming:
            made[index].append(token)
            if token in ends or len(made[index]) == max_new_tokens:
                done += 1
                if done % batch_size == 0 or done == len(prompts):
                    progress(done)
    texts = tokenizer.batch_decode([_before_end(ids, ends) for ids in made], skip_special_tokens=True)
    return [text.strip() for text in texts]


@torch.no_grad()
def stream(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, prompt: list[int], max_new_tokens: int
) -> None:
    """Print the greedy answer to `prompt` (token ids) as it comes."""
    from transformers import TextStreamer

    _check_fits(model, len(prompt), max_new_tokens)
    model.eval()
    ends = _ends(model, tokenizer)
    printer = TextStreamer(tokenizer, skip_special_tokens=True)
    with decoding.prepared(model, [prompt], max_new_tokens) as ready:
        if ready:
            coming = decoding.tokens(model, [prompt], slots=1, max_new_tokens=max_new_tokens, ends=ends)
        else:
            coming = _by_transformers(model, tokenizer, [prompt], 1, max_new_tokens)
        for _, token in coming:
            if token not in ends:
                printer.put(torch.tensor([token]))
    printer.end()


def _check_fits(model: PreTrainedModel | PeftModel, prompt_tokens: int, max_new_tokens: int) -> None:
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and prompt_tokens + max_new_tokens > positions:
        raise UserError(
            f"eval.max_new_tokens: {max_new_tokens} tokens after a prompt of {prompt_tokens} are more than the model's "
            f"{positions} positions; lower it"
        )


def _ends(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What ends an answer: an end token of the model or the tokenizer.

    Nothing else reaches generation from the model's folder: `models.ends.keep_ends_alone` has seen to that at load.
    """
    return sorted({tokenizer.eos_token_id, *end_tokens(model)})


def _by_transformers(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    batch_size: int,
    max_new_tokens: int,
) -> Iterator[tuple[int, int]]:
    """What `decoding.tokens` yields, batch after batch, for models that it doesn't fit: those that carry a state, say.

    Prompts of like length share a batch, padded on the left.
    """
    from transformers import GenerationConfig

    ends = _ends(model, tokenizer)
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id, eos_token_id=ends
    )
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer.pad(
            {"input_ids": [prompts[index] for index in chosen]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        output = cast("Callable[..., torch.Tensor]", model.generate)(**batch, generation_config=greedy)
        for index, ids in zip(chosen, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            answer = _before_end(ids, ends)
            yield from ((index, token) for token in ids[: len(answer) + 1])


def _before_end(ids: list[int], ends: list[int]) -> list[int]:
    """The answer's tokens: an end token needn't be a special one, which decoding would leave out."""
    return list(takewhile(lambda token: token not in ends, ids))
