"""Exports read back by the programs that people use them with: peft, transformers, llama.cpp."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel

from finetune.device import compute_dtype, device
from finetune.models.loading import end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def by_peft(folder: Path, base: Path) -> PeftModel:
    """The adapter in `folder` over the model in `base`, as peft's users load it."""
    return PeftModel.from_pretrained(_by_transformers(base), folder)


def by_transformers(folder: Path, gguf: str | None = None) -> PreTrainedModel:
    """The model in `folder`, or that in its file `gguf`, as transformers' users load it."""
    more = {} if gguf is None else {"gguf_file": gguf, "quantization_config": GgufConfig(dequantize=True)}
    return _by_transformers(folder, **more)


def _by_transformers(folder: Path, **more: Any) -> PreTrainedModel:
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
def answers(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
) -> list[str]:
    """Greedy answers by `generate`, where the model's own end tokens end them; stripped, in the prompts' order."""
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


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int], **settings: bool) -> str:
    return cast(str, tokenizer.decode(ids, **settings))


def llama_cpp_is_here() -> bool:
    """Whether llama.cpp can be asked (package llama-cpp-python)."""
    return find_spec("llama_cpp") is not None


def by_llama_cpp(
    file: Path, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], max_new_tokens: int
) -> tuple[list[str], int]:
    """llama.cpp's greedy answers to the prompts, and how many of them it cuts into other tokens than `tokenizer`."""
    from llama_cpp import Llama  # type: ignore[import-not-found]  # it compiles where there is a compiler

    llama = Llama(str(file), n_ctx=max(map(len, prompts)) + max_new_tokens, verbose=False, seed=0)
    texts = [_text(tokenizer, ids) for ids in prompts]
    cut_else = sum(
        llama.tokenize(text.encode(), add_bos=False, special=True) != ids
        for text, ids in zip(texts, prompts, strict=True)
    )
    found = []
    for ids in prompts:
        llama.reset()
        done = llama.create_completion(ids, max_tokens=max_new_tokens, temperature=0.0)
        found.append(done["choices"][0]["text"].strip())
    llama.close()
    return found, cut_else
