"""An export read back by the programs that people use it with (peft, transformers, llama.cpp), and compared with the
checkpoint that it was made from: loss on the test examples, and greedy answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel

from finetune import params
from finetune.comparison.significance import FEW_EXAMPLES, Estimate, estimate, resamples
from finetune.data import prepared
from finetune.device import compute_dtype, device
from finetune.evaluation import scoring
from finetune.export.make import Export
from finetune.generation import greedy
from finetune.kernels.attention import ATTENTION_NAME
from finetune.kernels.loss import sequence_losses
from finetune.kernels.packing import TOKENS_PER_FORWARD
from finetune.models.base import Base
from finetune.models.check_model import check_model
from finetune.models.loading import end_tokens, load_tuned

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    Model = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class Measured:
    """One model on the test examples."""

    name: str
    nats: numpy.ndarray | None
    """(examples): summed cross-entropy of each response; None for a program that tells no losses."""
    answers: list[str]
    """Answers to the first prompts of the test set."""
    base: Base | None = None
    """The weights that an adapter trained over four bits was merged onto, or put over."""


class TestSet:
    """The test examples, and the prompts of the first of them."""

    def __init__(self, test: Dataset, prompts: int) -> None:
        self._test = test
        self.prompts = prepared.prompt_ids(test.select(range(min(prompts, len(test)))))
        self.tokens = numpy.array([sum(label != prepared.IGNORE for label in labels[1:]) for labels in test["labels"]])

    def __len__(self) -> int:
        return len(self.tokens)

    def nats(self, model: Model) -> numpy.ndarray:
        """The loss of each example under `model`, which uses our attention from then on."""
        if model.config._attn_implementation != ATTENTION_NAME:
            model.set_attn_implementation(ATTENTION_NAME)
        packed = check_model(model, self._test, padding=0)
        losses = sequence_losses(model, self._test, TOKENS_PER_FORWARD if packed else 1)
        scoring.check_losses(self._test, losses)
        return numpy.array([loss.nats for loss in losses])

    def loss(self, measured: Measured) -> float | None:
        """Mean loss in nats per response token."""
        return None if measured.nats is None else float(measured.nats.sum() / self.tokens.sum())

    def difference(self, after: Measured, before: Measured) -> Estimate | None:
        """Loss of `after` less that of `before`, with its 95% interval over the examples; None if one has no losses.

        The interval is infinite where there are too few examples for one.
        """
        if after.nats is None or before.nats is None:
            return None
        drawn = resamples(len(self))
        found = estimate((drawn @ (after.nats - before.nats)) / (drawn @ self.tokens))
        return found if len(self) >= FEW_EXAMPLES else Estimate(found.value, float("-inf"), float("inf"))


def unlike(after: Measured, before: Measured) -> int:
    """How many answers differ."""
    return sum(one != other for one, other in zip(after.answers, before.answers, strict=True))


def measure(export: Export, folder: Path, test: TestSet, settings: params.Eval) -> Iterator[Measured]:
    """Measure the checkpoint, then the export in `folder`, read back, then models that it could be mistaken for.

    One model is in memory at a time. The first is what the others are compared with, and the second the export itself.
    """
    limits = {"batch_size": settings.decode_batch_size, "max_new_tokens": settings.max_new_tokens}
    tokenizer = export.checkpoint.tokenizer

    def measured(name: str, load: Callable[[], Model], base: Base | None = None, answer: Any = _answers) -> Measured:
        print(f"scoring {name}", flush=True)
        model = load()
        # The answers first, because for the losses the model is given another attention.
        answers = answer(model, tokenizer, test.prompts, **limits)
        return Measured(name, test.nats(model), answers, base)

    checkpoint = partial(load_tuned, export.checkpoint, export.own_base)
    yield measured("the checkpoint", checkpoint, answer=greedy.generate)
    for name, load, base in _models(export, folder):
        yield measured(name, load, base)
    if export.format == "gguf" and find_spec("llama_cpp"):
        print("asking llama.cpp", flush=True)
        answers, other_tokens = _by_llama_cpp(folder / export.file, tokenizer, test.prompts, settings.max_new_tokens)
        note = f" ({other_tokens} prompts cut into other tokens)" if other_tokens else ""
        yield Measured(f"{export.file}, read by llama.cpp{note}", None, answers)


def _models(export: Export, folder: Path) -> Iterator[tuple[str, Callable[[], Model], Base | None]]:
    """Name, loader and base of the export read back, then of the models that it could be mistaken for."""
    base, other = export.base, export.other_base
    if base is not None and export.format == "adapter":
        name = f"the adapter over {_name(export, base)}, read by peft"
        yield name, partial(_by_peft, folder, base), base
        if other:
            yield f"the adapter over {_name(export, other)}", partial(_by_peft, folder, other), other
        return
    name = f"merged onto {_name(export, base)}" if base else "the model"
    if export.format == "gguf":
        gguf = {"gguf_file": export.file, "quantization_config": GgufConfig(dequantize=True)}
        yield f"{export.file}, read by transformers", partial(_by_transformers, folder, **gguf), None
        yield f"{name}, 16 bits", partial(_merged, export, base), base
    else:
        yield f"{name}, read by transformers", partial(_by_transformers, folder), base
    if other:
        yield f"merged onto {_name(export, other)}", partial(_merged, export, other), other


def _name(export: Export, base: Base) -> str:
    """What a base of an adapter is called."""
    if not export.checkpoint.method.quantized:
        return "its base"
    return "four bits" if base == export.own_base else "the original weights"


def _merged(export: Export, onto: Base | None) -> PreTrainedModel:
    """The checkpoint merged onto `onto` and rounded to 16 bits, with products in the dtype of the other models.

    A CPU without bf16 instructions emulates products of 16 bits: they take eight times as long, and differ from those
    in 32 bits by more than the export does.
    """
    model = export.merged(onto)
    return model.float() if compute_dtype() == torch.float32 else model


def _by_peft(folder: Path, base: Base) -> PeftModel:
    """The adapter in `folder` over `base`, as peft's users load it."""
    return PeftModel.from_pretrained(_by_transformers(base.folder), folder)


def _by_transformers(folder: Path, **more: Any) -> PreTrainedModel:
    """The model in `folder` as transformers' users load it."""
    return AutoModelForCausalLM.from_pretrained(
        str(folder),
        dtype=compute_dtype(),
        device_map={"": device()},
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        **more,
    )


@torch.no_grad()
def _answers(
    model: Model, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], *, batch_size: int, max_new_tokens: int
) -> list[str]:
    """Greedy answers by `generate`, ended by the model's own end tokens; stripped, in the prompts' order."""
    model.eval()
    ends = end_tokens(model)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    found = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer.pad(
            {"input_ids": [prompts[index] for index in chosen]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        made = model.generate(  # type: ignore[operator]
            **batch, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id
        )
        for index, ids in zip(chosen, made[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            answer = list(takewhile(lambda token: token not in ends, ids))
            found[index] = _text(tokenizer, answer, skip_special_tokens=True).strip()
    return found


def _by_llama_cpp(
    file: Path, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], max_new_tokens: int
) -> tuple[list[str], int]:
    """llama.cpp's greedy answers to the prompts, and how many of the prompts it tokenises otherwise than `tokenizer`."""
    from llama_cpp import Llama  # type: ignore[import-not-found]  # installed only where there is a compiler

    llama = Llama(str(file), n_ctx=max(map(len, prompts)) + max_new_tokens, verbose=False, seed=0)
    texts = [_text(tokenizer, ids) for ids in prompts]
    other_tokens = sum(
        llama.tokenize(text.encode(), add_bos=False, special=True) != ids
        for text, ids in zip(texts, prompts, strict=True)
    )
    found = []
    for ids in prompts:
        llama.reset()
        done = llama.create_completion(ids, max_tokens=max_new_tokens, temperature=0.0)
        found.append(done["choices"][0]["text"].strip())
    llama.close()
    return found, other_tokens


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int], **settings: bool) -> str:
    return cast(str, tokenizer.decode(ids, **settings))
