"""Greedy answers to many prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import torch

from finetune.errors import UserError
from finetune.generation.engine import Engine
from finetune.generation.joint_layers import OWN, JointLayers
from finetune.generation.prepared_model import prepared
from finetune.generation.request import Request
from finetune.models.loading import end_tokens

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Answer each prompt (token ids) as `GreedyAnswers` does. Raises UserError as `greedy_answers` does."""
    with greedy_answers(model, tokenizer, prompts, batch_size=batch_size, max_new_tokens=max_new_tokens) as answers:
        return answers.to(prompts, progress)


@contextmanager
def greedy_answers(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
) -> Iterator[GreedyAnswers]:
    """Prepare `model` once to answer, within the block, portions of `prompts` (token ids), `batch_size` at a time.

    Raises UserError if the longest prompt and its answer don't fit the model's positions.
    """
    check_fits(model, prompts, max_new_tokens)
    model.eval()
    with torch.no_grad(), prepared(model, prompts, max_new_tokens) as layers:
        yield GreedyAnswers(model, tokenizer, layers, batch_size, max_new_tokens)


@dataclass(frozen=True)
class GreedyAnswers:
    """A prepared model that answers by the likeliest token at each place."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    layers: JointLayers | None
    batch_size: int
    max_new_tokens: int

    def to(self, prompts: list[list[int]], progress: Callable[[int], None]) -> list[str]:
        """The answers to `prompts` (token ids), in their order, stripped.

        An end token of the model or the tokenizer ends an answer. Nothing else in the model's folder changes answers:
        `models.loading.load_base` sees to that. `progress` gets the number done, after each `batch_size` and at the
        end.
        """
        ends = {self.tokenizer.eos_token_id, *end_tokens(self.model)}
        requests = [Request(ids, self.max_new_tokens, ends, OWN) for ids in prompts]
        engine = Engine(self.model, self.layers, min(self.batch_size, len(prompts)), offline=True)
        for request in reversed(sorted(requests, key=lambda request: len(request.prompt))):
            engine.submit(request)
        done = 0
        while engine.requests:
            for request in engine.step():
                done += request.reason is not None
                if request.reason and (done % self.batch_size == 0 or done == len(prompts)):
                    progress(done)
        # An end token needn't be a special one, which decoding would leave out.
        answers = [list(takewhile(lambda token: token not in ends, one.made)) for one in requests]
        return [text.strip() for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]


def check_fits(model: PreTrainedModel | PeftModel, prompts: list[list[int]], max_new_tokens: int) -> None:
    """Raise UserError if the longest of `prompts` and its answer don't fit the model's positions."""
    prompt_tokens = max(map(len, prompts))
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and prompt_tokens + max_new_tokens > positions:
        raise UserError(
            f"eval.max_new_tokens: {max_new_tokens} tokens after a prompt of {prompt_tokens} are more than the model's "
            f"{positions} positions; lower it"
        )
