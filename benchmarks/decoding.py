"""Answers to the test prompts through the fine-tuned model: ours in batches, or the seed recipe's loop, one by one.

Runs in a process of its own: `python benchmarks/decoding.py batched --prompts 32` prints one JSON line.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).parents[1]))

from finetune import cli, places


def batched(prompts: list[list[int]], tokenizer, base: Path, max_new_tokens: int) -> tuple[list[str], float]:
    """What stages/eval.py does."""
    from finetune import params
    from finetune.evaluation.generation import generate
    from finetune.models.adapters import load_tuned
    from finetune.models.saved import read_facts

    model = load_tuned(places.TUNED, read_facts(places.TUNED), base)
    size = params.load().eval.decode_batch_size
    return timed(lambda: generate(model, tokenizer, prompts, batch_size=size, max_new_tokens=max_new_tokens))


def one_by_one(prompts: list[list[int]], tokenizer, base: Path, max_new_tokens: int) -> tuple[list[str], float]:
    """peft's model as it is loaded, `generate` on each prompt."""
    import torch
    from peft import PeftModel

    from finetune import params
    from finetune.device import compute_dtype
    from finetune.models.base import load_base

    quantized = load_base(base, compute_dtype(), params.load().quantization)
    model = PeftModel.from_pretrained(quantized, places.TUNED).eval()

    def answer(prompt: list[int]) -> str:
        ids = torch.tensor([prompt], device=model.device)
        output = cast("Callable[..., torch.Tensor]", model.generate)(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_new_tokens
        )
        return tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True).strip()

    return timed(lambda: [answer(prompt) for prompt in prompts])


def timed(work) -> tuple[list[str], float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


WAYS = {"batched": batched, "one by one": one_by_one}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=list(WAYS))
    parser.add_argument("--prompts", type=int, default=32, help="test prompts (default: 32)")
    parser.add_argument("--max_new_tokens", type=int, default=48, help="tokens per answer at most (default: 48)")
    args = parser.parse_args()

    from finetune.data import prepared
    from finetune.models import tokenizer as tokenizers
    from finetune.sources.fetch import base_folder

    base = base_folder(None)
    tokenizer = tokenizers.load(base)
    splits, _ = prepared.load(places.PREPARED, tokenizer)
    prompts = prepared.prompt_ids(splits["test"])[: args.prompts]
    answers, seconds = WAYS[args.way](prompts, tokenizer, base, args.max_new_tokens)
    print(json.dumps({"way": args.way, "seconds": seconds, "examples": len(prompts), "answers": answers}))


if __name__ == "__main__":
    cli.run(main)
