"""Mistakes with `finetune export`."""

import shutil

from faults import Bench, Fault
from finetune import yaml_file


def exported(bench: Bench, *arguments: str, method: str = "full", family: str | None = None) -> str:
    """`finetune export` on a checkpoint of `method`: its facts alone, or with the tiny model of `family`."""
    if family:
        shutil.copytree(bench.models[family], bench.folder / "models/tuned")
    data = {"source": "words", "licence": "mine"}
    bench.write("models/tuned/.keep", "")
    yaml_file.write(
        bench.folder / "models/tuned/facts.yaml",
        {"method": method, "base": "models/nowhere", "seed": 1, "template": "alpaca", "data": data},
    )
    return bench.refused_by("export", *arguments)


def fault(what: str, names: str, *arguments: str, **checkpoint: str) -> Fault:
    """What `finetune export` refuses."""
    return Fault("export", what, names, lambda bench: exported(bench, *arguments, **checkpoint))


ELSE = "merged … llama.cpp's convert_hf_to_gguf.py"

FAULTS: list[Fault] = [
    Fault(
        "export",
        "`finetune export merged` before training",
        "models/tuned … `dvc repro train` … `python stages/train.py`",
        lambda bench: bench.refused_by("export", "merged"),
    ),
    fault("`finetune export onnx`", "FORMAT: … 'onnx' … `finetune export --help`", "onnx"),
    fault("`finetune export adapter` after full fine-tuning", "models/tuned … no adapter … merged … gguf", "adapter"),
    fault("`--type` for a merged model", "--type: … gguf … merged … leave it out", *("merged", "--type", "f16")),
    fault("`--onto` for an adapter", "--onto: … adapter … merged", *("adapter", "--onto", "original")),
    fault(
        "`--onto` for a model whose base wasn't in four bits",
        "--onto: … original … four bits … leave it out",
        *("merged", "--onto", "original"),
        family="llama",
    ),
    fault("`--examples 0`", "--examples: … 1 … 0", "merged", "--examples", "0"),
    fault(
        "an adapter whose base is gone",
        "models/nowhere: … base model … --model_name",
        "merged",
        method="lora",
        family="llama",
    ),
    fault("GPT-2 as GGUF", f"gguf: … gpt2 … llama, qwen2 … {ELSE}", "gguf", family="gpt2"),
    fault("`--push` without an owner", "--push … 'mine' … owner/name", *("merged", "--push", "mine")),
    fault(
        "`--out_dir models/base`",
        "models/base: … lost … --out_dir … models/mine",
        *("merged", "--out_dir", "models/base"),
        family="llama",
    ),
]
