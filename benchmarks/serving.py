"""Answers of a fine-tuned model and of several adapters over one base: ours, and plain transformers with peft.

    python benchmarks/serving.py

needs a finished `dvc repro` of method qlora, and nothing else running. Both sides take turns, each in a process of its own:
the first token after the command, tokens/s at batch 1 and 16, the time to switch adapters, the memory of a further adapter,
and a batch of 16 prompts over 4 adapters. `python benchmarks/serving.py peft` is one of its workers, and prints one JSON
line. The adapters are copies of models/tuned: what they say doesn't matter here, only what they cost.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[1]))

import workers
from cost import spread

from finetune import cli, files, places
from finetune.comparison import generated
from finetune.models.checkpoint import Checkpoint

ADAPTERS = 4
BATCH = 16
TOKENS = 48
"""Of each answer: end tokens are ignored on both sides, so that both make as many."""
QUESTION = "Name three primary colours."


def ours(prompts: list[list[int]]) -> dict[str, float]:
    """The engine of `finetune chat` and `finetune serve`."""
    from finetune.generation.request import Request
    from finetune.registry.checkpoints import WORKSPACE
    from finetune.serving.adapter_file import read_adapter
    from finetune.serving.models import Models

    started = time.perf_counter()
    one, many = Models(slots=1), Models(slots=BATCH)
    single = one.add(WORKSPACE)
    loaded = time.perf_counter() - started
    engine = many.add(WORKSPACE).engine
    layers = engine._layers
    assert layers is not None
    names = [f"copy {number}" for number in range(ADAPTERS)]
    before = held()
    for name in names:
        layers.load(name, read_adapter(places.TUNED))
    each = (held() - before) / ADAPTERS

    def made(engine: Any, adapters: list[str | None]) -> float:
        """Seconds for `TOKENS` tokens of as many prompts as `adapters`."""
        requests = [Request(ids, TOKENS, (), name) for ids, name in zip(prompts, adapters, strict=False)]
        for request in requests:
            engine.submit(request)
        began = time.perf_counter()
        while engine.requests:
            engine.step()
        return time.perf_counter() - began

    switches = []
    for number in range(20):
        began = time.perf_counter()
        layers.assign([names[number % 2]])
        for group in layers._groups:
            group.adapters.select(group.rows)
        switches.append(time.perf_counter() - began)

    made(single.engine, [single.adapter])
    at_one = median(made(single.engine, [single.adapter]) for _ in range(3))
    made(engine, [names[0]] * BATCH)
    same = made(engine, [names[0]] * BATCH)
    mixed = made(engine, [names[number % ADAPTERS] for number in range(BATCH)])
    return {
        "load_seconds": loaded,
        **speeds(at_one, same, mixed),
        "switch_ms": median(switches) * 1000,
        "adapter_gb": each,
    }


def peft(prompts: list[list[int]]) -> dict[str, float]:
    """transformers and peft as their documents have it: load_adapter, set_adapter, `generate` on a padded batch."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    started = time.perf_counter()
    model = loaded_by_peft(AutoModelForCausalLM, PeftModel)
    loaded = time.perf_counter() - started
    before = held()
    for number in range(ADAPTERS):
        model.load_adapter(str(places.TUNED), f"copy {number}")
    each = (held() - before) / ADAPTERS
    switches = []
    for number in range(20):
        began = time.perf_counter()
        model.set_adapter(f"copy {number % 2}")
        switches.append(time.perf_counter() - began)

    def made(rows: list[list[int]], **more: object) -> float:
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        began = time.perf_counter()
        cast("Callable[..., torch.Tensor]", model.generate)(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS, **more
        )
        return time.perf_counter() - began

    made(prompts[:1])
    at_one, same = median(made(prompts[:1]) for _ in range(3)), made(prompts)
    mixed = made(prompts, adapter_names=[f"copy {number % ADAPTERS}" for number in range(BATCH)])
    return {
        "load_seconds": loaded,
        **speeds(at_one, same, mixed),
        "switch_ms": median(switches) * 1000,
        "adapter_gb": each,
    }


def speeds(at_one: float, same: float, mixed: float) -> dict[str, float]:
    """Tokens/s, given the seconds of one answer, of a batch, and of a batch over several adapters."""
    return {
        "tokens_per_second_1": TOKENS / at_one,
        "tokens_per_second_16": BATCH * TOKENS / same,
        "tokens_per_second_mixed": BATCH * TOKENS / mixed,
    }


def loaded_by_peft(transformers_class: Any, peft_class: Any) -> Any:
    """The base in four bits with the adapter."""
    from finetune.device import compute_dtype

    base = transformers_class.from_pretrained(places.BASE_4BIT, dtype=compute_dtype())
    return peft_class.from_pretrained(base, places.TUNED).eval()


def first_token() -> dict[str, float]:
    """peft's first token, in a process that does nothing else; timed from outside."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(places.TUNED)
    model = loaded_by_peft(AutoModelForCausalLM, PeftModel)
    batch = tokenizer(f"### Instruction:\n{QUESTION}\n\n### Response:\n", return_tensors="pt")
    with torch.no_grad():
        model.generate(**batch, do_sample=False, max_new_tokens=1)
    return {}


def held() -> float:
    """GB that the process holds."""
    import gc

    import psutil

    gc.collect()
    return psutil.Process().memory_info().rss / 1e9


WAYS: dict[str, Callable[[list[list[int]]], dict[str, float]]] = {"ours": ours, "peft": peft}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", nargs="?", choices=[*WAYS, "first"], help="one worker, instead of all in turn")
    parser.add_argument("--rounds", type=int, default=3, help="how often all take turns (default: 3)")
    args = parser.parse_args()
    if args.way is None:
        compare(args.rounds)
    elif args.way == "first":
        print(json.dumps(first_token()))
    else:
        print(json.dumps(WAYS[args.way](test_prompts())))


def test_prompts() -> list[list[int]]:
    from finetune.data import prepared

    splits, _ = prepared.load(places.PREPARED, Checkpoint.read(places.TUNED).tokenizer)
    return prepared.prompt_ids(splits["test"])[:BATCH]


def compare(rounds: int) -> None:
    """Take turns; put the table into benchmarks/README.md, the figures into results/serving.json."""
    from finetune import device

    turns = []
    for _ in range(rounds):
        done = {way: workers.run("serving.py", way) for way in WAYS}
        done["ours"]["first_seconds"] = timed("../finetune/commands/main.py", "chat", "--prompt", QUESTION)
        done["peft"]["first_seconds"] = timed("serving.py", "first")
        turns.append(done)
        print(json.dumps(done), file=sys.stderr, flush=True)
    results = {
        "file_gb": (places.TUNED / "adapter_model.safetensors").stat().st_size / 1e9,
        "hardware": device.describe(),
        "versions": device.versions(),
        "rounds": turns,
    }
    files.write_json(places.RESULTS / "serving.json", results)
    generated.put("serving", markdown(results))
    print(markdown(results))


def timed(script: str, *arguments: str) -> float:
    """Seconds until a command has printed its first answer's first token."""
    import subprocess

    module = ["-m", "finetune.commands.main"] if script.endswith("main.py") else [f"benchmarks/{script}"]
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *module, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as running:
        assert running.stdout is not None
        running.stdout.read(1)
        seconds = time.perf_counter() - began
        running.kill()
    return seconds


ROWS = (
    ("first token after the command (s)", "first_seconds", ".1f"),
    ("tokens/s, batch 1", "tokens_per_second_1", ".0f"),
    ("tokens/s, batch 16", "tokens_per_second_16", ".0f"),
    ("tokens/s, batch 16 over 4 adapters", "tokens_per_second_mixed", ".0f"),
    ("switch to another adapter (ms)", "switch_ms", ".2f"),
    ("load base and adapter again (s)", "load_seconds", ".1f"),
)


def over_file(results: dict, way: str) -> list[float]:
    """The memory of a further adapter over the size of its file, in each round."""
    return [one[way]["adapter_gb"] / results["file_gb"] for one in results["rounds"]]


def over_one_adapter(results: dict, way: str) -> list[float]:
    """Tokens/s of a batch over several adapters, over those of one adapter's, in each round."""
    return [one[way]["tokens_per_second_mixed"] / one[way]["tokens_per_second_16"] for one in results["rounds"]]


def markdown(results: dict) -> str:
    """The table."""
    rounds = results["rounds"]
    lines = ["| median (least to most) | ours | transformers and peft |", "|---|---:|---:|"]
    for text, key, form in ROWS:
        lines.append(f"| {text} | {' | '.join(spread([one[way][key] for one in rounds], form) for way in WAYS)} |")
    for text, values in (
        ("memory of a further adapter, over its file", over_file),
        ("speed over 4 adapters, over that of one", over_one_adapter),
    ):
        lines.append(f"| {text} | {' | '.join(spread(values(results, way), '.2f') for way in WAYS)} |")
    return "\n".join(lines) + (
        f"\n\n{TOKENS} tokens an answer, the first {BATCH} test prompts. The adapter's file has {results['file_gb']:.4f} GB. "
        f"{len(rounds)} rounds in turn. {results['hardware']}; {results['versions']}."
    )


if __name__ == "__main__":
    cli.run(main)
