"""Answers to the test prompts: the fine-tuned model's and the base model's as stages/eval.py makes them, and one by one.

    python benchmarks/decoding.py

needs a finished `dvc repro`, takes turns and gives ratios of answers per second: tuned model over base model, on all
test prompts; and ours over the seed recipe's loop, which gives one prompt at a time to peft's modules, on a few.
`python benchmarks/decoding.py batched --prompts 32` is one of its workers, and prints one JSON line.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).parents[1]))

import workers
from cost import spread

from finetune import cli, files, places
from finetune.comparison import generated
from finetune.models.base import Base

FEW = ("--prompts", 32, "--max_new_tokens", 48)
"""What is asked one by one, which takes about a second a prompt."""


def batched(prompts: list[list[int]], tokenizer, base: Base, max_new_tokens: int) -> tuple[list[str], float]:
    """What stages/eval.py does."""
    from finetune.models.checkpoint import Checkpoint
    from finetune.models.loading import load_tuned

    checkpoint = Checkpoint.read(places.TUNED)
    return evaluated(load_tuned(checkpoint, checkpoint.base(base.folder)), prompts, tokenizer, max_new_tokens)


def untuned(prompts: list[list[int]], tokenizer, base: Base, max_new_tokens: int) -> tuple[list[str], float]:
    """What stages/eval.py does under --base."""
    from finetune.device import compute_dtype
    from finetune.models.loading import load_base

    return evaluated(load_base(base, compute_dtype()), prompts, tokenizer, max_new_tokens)


def evaluated(model, prompts: list[list[int]], tokenizer, max_new_tokens: int) -> tuple[list[str], float]:
    from finetune import params
    from finetune.generation.greedy import generate

    size = params.load().eval.decode_batch_size
    return timed(lambda: generate(model, tokenizer, prompts, batch_size=size, max_new_tokens=max_new_tokens))


def one_by_one(prompts: list[list[int]], tokenizer, base: Base, max_new_tokens: int) -> tuple[list[str], float]:
    """peft's model as transformers and peft load it, `generate` on each prompt."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from finetune.device import compute_dtype

    quantized = AutoModelForCausalLM.from_pretrained(places.BASE_4BIT, dtype=compute_dtype())
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


WAYS = {"batched": batched, "base": untuned, "one by one": one_by_one}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", nargs="?", choices=list(WAYS), help="one run, instead of all in turn")
    parser.add_argument("--rounds", type=int, default=3, help="how often all take turns (default: 3)")
    parser.add_argument("--prompts", type=int, help="of one run: test prompts (default: all)")
    parser.add_argument(
        "--max_new_tokens", type=int, default=48, help="of one run: tokens per answer at most (default: 48)"
    )
    args = parser.parse_args()
    if args.way is None:
        compare(args.rounds)
        return

    from finetune.data import prepared

    base = Base.named(None)
    tokenizer = base.tokenizer
    splits, _ = prepared.load(places.PREPARED, tokenizer)
    prompts = prepared.prompt_ids(splits["test"])[: args.prompts]
    answers, seconds = WAYS[args.way](prompts, tokenizer, base, args.max_new_tokens)
    tokens = sum(map(len, tokenizer(answers)["input_ids"]))
    done = {"way": args.way, "seconds": seconds, "examples": len(prompts), "tokens": tokens, "answers": answers}
    print(json.dumps(done))


def compare(rounds: int) -> None:
    """Take turns; print the ratios, and put them into benchmarks/README.md and results/decoding.json."""
    from finetune import device, params

    whole = ("--max_new_tokens", params.load().eval.max_new_tokens)
    turns = []
    for _ in range(rounds):
        done = {way: workers.run("decoding.py", way, *whole) for way in ("batched", "base")}
        done |= {f"{way}, few": workers.run("decoding.py", way, *FEW) for way in ("batched", "one by one")}
        turns.append(done)
        print({way: round(one["seconds"], 2) for way, one in done.items()}, file=sys.stderr, flush=True)
    results = {
        "max_new_tokens": {"all": whole[1], "few": FEW[3]},
        "hardware": device.describe(),
        "versions": device.versions(),
        "rounds": turns,
    }
    files.write_json(places.RESULTS / "decoding.json", results)
    generated.put("decoding", markdown(results))
    print(markdown(results))


def ratio(rounds: list[dict], way: str, other: str, of: str) -> list[float]:
    """`examples` or `tokens` per second by one way over those by another, in each round."""
    return [one[way][of] / one[way]["seconds"] * one[other]["seconds"] / one[other][of] for one in rounds]


def over_base(rounds: list[dict]) -> list[float]:
    """Our tuned model's answers/s over the base model's."""
    return ratio(rounds, "batched", "base", "examples")


def over_one_by_one(rounds: list[dict]) -> list[float]:
    """Our answers/s over the seed recipe's, one by one."""
    return ratio(rounds, "batched, few", "one by one, few", "examples")


def markdown(results: dict) -> str:
    """The ratios, and how alike the answers are."""
    rounds = results["rounds"]
    few, single = rounds[0]["batched, few"]["answers"], rounds[0]["one by one, few"]["answers"]
    same = sum(one == other for one, other in zip(few, single, strict=True))
    lines = ["| | median (least to most) |", "|---|---:|"]
    for text, values in (
        ("answers/s: our tuned model's over the base model's", over_base(rounds)),
        ("tokens/s: our tuned model's over the base model's", ratio(rounds, "batched", "base", "tokens")),
        ("answers/s: ours over the seed recipe's, one by one", over_one_by_one(rounds)),
    ):
        lines.append(f"| {text} | {spread(values, '.2f')} |")
    return "\n".join(lines) + (
        f"\n\n{rounds[0]['batched']['examples']} test prompts, {results['max_new_tokens']['all']} new tokens at most; one by "
        f"one {len(few)} prompts, {results['max_new_tokens']['few']} new tokens: {same} answers the same both ways. "
        f"{len(rounds)} rounds in turn. {results['hardware']}; {results['versions']}."
    )


if __name__ == "__main__":
    cli.run(main)
