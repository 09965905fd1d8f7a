"""Greedy answers to prompts: to all of a list, or to one as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import TYPE_CHECKING, Any, cast

import torch

from finetune.errors import UserError
from finetune.evaluation import decoding
from finetune.models.loading import end_tokens

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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

    At most `batch_size` prompts are answered at a time. `progress` gets the number done, after each `batch_size` and
    at the end. Raises UserError if prompt and answer don't fit the model's positions.
    """
    check_fits(model, prompts, max_new_tokens)
    model.eval()
    ends = _ends(model, tokenizer)
    made: list[list[int]] = [[] for _ in prompts]
    done = 0
    with decoding.prepared(model, prompts, max_new_tokens) as ready:
        if ready:
            tokens = decoding.tokens(model, prompts, slots=batch_size, max_new_tokens=max_new_tokens, ends=ends)
        else:
            tokens = _padded(model, tokenizer, prompts, batch_size, max_new_tokens)
        for index, token in tokens:
            made[index].append(token)
            if token in ends or len(made[index]) == max_new_tokens:
                done += 1
                if done % batch_size == 0 or done == len(prompts):
                    progress(done)
    # An end token needn't be a special one, which decoding would leave out.
    texts = tokenizer.batch_decode(
        [list(takewhile(lambda token: token not in ends, ids)) for ids in made], skip_special_tokens=True
    )
    return [text.strip() for text in texts]


@torch.no_grad()
def stream(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, prompt: list[int], max_new_tokens: int
) -> None:
    """Print the greedy answer to `prompt` (token ids) as it comes."""
    from transformers import TextStreamer

    check_fits(model, [prompt], max_new_tokens)
    model.eval()
    ends = _ends(model, tokenizer)

    class Printer(TextStreamer):
        def put(self, value: torch.Tensor) -> None:
            super().put(value if self.next_tokens_are_prompt else value[~torch.isin(value, torch.tensor(ends))])

    printer = Printer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    with decoding.prepared(model, [prompt], max_new_tokens) as ready:
        if not ready:
            _by_transformers(model, tokenizer, [prompt], max_new_tokens, streamer=printer)
            return
        printer.put(torch.tensor(prompt))
        for _, token in decoding.tokens(model, [prompt], slots=1, max_new_tokens=max_new_tokens, ends=ends):
            printer.put(torch.tensor([token]))
    printer.end()


def check_fits(model: PreTrainedModel | PeftModel, prompts: list[list[int]], max_new_tokens: int) -> None:
    """Raise UserError if the longest of `prompts` and its answer don't fit the model's positions."""
    prompt_tokens = max(map(len, prompts))
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and prompt_tokens + max_new_tokens > positions:
        raise UserError(
            f"eval.max_new_tokens: {max_new_tokens} tokens after a prompt of {prompt_tokens} are more than the model's "
            f"{positions} positions; lower it"
        )


def _ends(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What ends an answer: an end token of the model or the tokenizer.

    Nothing else of the model's folder has a say in generation: `models.loading.load_base` has seen to that at load.
    """
    return sorted({tokenizer.eos_token_id, *end_tokens(model)})


def _padded(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    batch_size: int,
    max_new_tokens: int,
) -> Iterator[tuple[int, int]]:
    """What `decoding.tokens` yields, batch after batch of like length, for models that it doesn't fit."""
    ends = _ends(model, tokenizer)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        answers = _by_transformers(model, tokenizer, [prompts[index] for index in chosen], max_new_tokens)
        for index, ids in zip(chosen, answers, strict=True):
            for token in ids:
                yield index, token
                if token in ends:
                    break


def _by_transformers(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    max_new_tokens: int,
    **settings: Any,
) -> list[list[int]]:
    """The tokens after each prompt of a batch, padded on the left; what comes after an end token is padding."""
    from transformers import GenerationConfig

    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=_ends(model, tokenizer),
    )
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    generated = cast("Callable[..., torch.Tensor]", model.generate)(**batch, generation_config=greedy, **settings)
    return generated[:, batch["input_ids"].shape[1] :].tolist()
