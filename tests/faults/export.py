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


def fault(what: str, sentence: str, *arguments: str, **checkpoint: str) -> Fault:
    """What `finetune export` refuses."""
    return Fault("export", what, sentence, lambda bench: exported(bench, *arguments, **checkpoint))


ELSE = "export merged, and convert that folder by llama.cpp's convert_hf_to_gguf.py"

FAULTS: list[Fault] = [
    Fault(
        "export",
        "`finetune export merged` before training",
        "models/tuned: no fine-tuned model there; run `dvc repro train` or `python stages/train.py` first",
        lambda bench: bench.refused_by("export", "merged"),
    ),
    fault(
        "`finetune export onnx`",
        "FORMAT: invalid choice: 'onnx' (choose from …); `finetune export --help` shows what can be given",
        "onnx",
    ),
    fault(
        "`finetune export adapter` after full fine-tuning",
        "models/tuned: all parameters were trained, so there is no adapter; export merged or gguf",
        "adapter",
    ),
    fault(
        "`--type` for a merged model",
        "--type: is for gguf, and merged has none; leave it out",
        *("merged", "--type", "f16"),
    ),
    fault(
        "`--onto` for an adapter",
        "--onto: an adapter is exported as it is, merged onto nothing; leave it out, or choose merged",
        *("adapter", "--onto", "original"),
    ),
    fault(
        "`--onto` for a model whose base wasn't in four bits",
        "--onto: original is a choice for an adapter trained over four bits only; leave it out for this one",
        *("merged", "--onto", "original"),
        family="llama",
    ),
    fault("`--examples 0`", "--examples: must be at least 1, got 0", "merged", "--examples", "0"),
    fault(
        "an adapter whose base is gone",
        "models/nowhere: the adapter's base model isn't there; give its folder as --model_name",
        "merged",
        method="lora",
        family="llama",
    ),
    fault(
        "GPT-2 as GGUF", f"gguf: gpt2 models can't be written here (llama, qwen2 can); {ELSE}", "gguf", family="gpt2"
    ),
    fault(
        "`--push` without an owner",
        "--push: 'mine' is no id on the Hugging Face Hub; give one as owner/name",
        *("merged", "--push", "mine"),
    ),
    fault(
        "`--out_dir models/base`",
        "models/base: is part of the pipeline's models/base, or holds it, which would be lost; give a folder of its own as --out_dir, as in models/mine",
        *("merged", "--out_dir", "models/base"),
        family="llama",
    ),
]
