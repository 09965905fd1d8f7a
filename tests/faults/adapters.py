"""Mistakes with adapters."""

import os
import shutil
from functools import partial
from unittest.mock import patch

from helpers import FAST, stage

from faults import Bench, Fault
from faults.spoiled import trained, weights
from finetune.device import CPU_DTYPE
from finetune.methods import METHODS


def targets(what: str, names: str, method: str = "lora", family: str = "llama", **lora: object) -> Fault:
    """Settings of `lora` that fit a tiny model not at all, or in part."""
    return Fault("adapters", what, names, partial(trained, method=method, family=family, lora=lora))


def steps(
    what: str, names: str, epochs: float = 1, rate: float = 0.01, method: str = "lora", dtype: str = "", **train: object
) -> Fault:
    """A run that would train nothing, or did; in the compute dtype of this machine, or in `dtype`."""

    def cause(bench: Bench) -> str:
        methods = FAST | {method: {"learning_rate": rate, "epochs": epochs}}
        with patch.dict(os.environ, {CPU_DTYPE: dtype} if dtype else {}):
            return trained(bench, method, methods=methods, train=train)

    return Fault("adapters", what, names, cause)


def _adapter(bench: Bench) -> None:
    """A LoRA adapter in models/tuned, over the workspace's folder `mine`."""
    shutil.copytree(bench.models["llama"], bench.folder / "mine")
    stage("prepare", "--model_name", "mine")
    stage("train", "--model_name", "mine", "--method", "lora")


def over_other_weights(bench: Bench) -> str:
    """An adapter put over another base of the same shape."""
    _adapter(bench)
    weights(bench.folder / "mine", lambda found: found["model.norm.weight"].mul_(2))
    return bench.refused("eval")


def cut_short(bench: Bench) -> str:
    """An adapter's file cut in half."""
    _adapter(bench)
    file = bench.folder / "models/tuned/adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return bench.refused("eval")


HEAD = "lora.target_modules … head … leave it out"
LAYERS = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"

FAULTS: list[Fault] = [
    targets("`target_modules: [lm_head, q_proj]`", HEAD, target_modules=["lm_head", "q_proj"]),
    targets("`target_modules: [lm_head]`", HEAD, target_modules=["lm_head"]),
    targets("`[lm_head]` with a tied head and qlora", HEAD, "qlora", target_modules=["lm_head"]),
    targets("`[lm_head]` with dora", HEAD, "dora", target_modules=["q_proj", "lm_head"]),
    targets("`[lm_head]` on GPT-2", HEAD, family="gpt2", target_modules=["c_attn", "lm_head"]),
    targets("a regex with the head in it", HEAD, target_modules=".*(q_proj|lm_head)"),
    targets(
        "a misspelt name in a list", f"lora.target_modules … 'v_porj' … {LAYERS}", target_modules=["q_proj", "v_porj"]
    ),
    targets(
        "a misspelt name in a list, with dropout",
        f"lora.target_modules … 'v_porj' … {LAYERS}",
        target_modules=["q_proj", "v_porj"],
        dropout=0.1,
    ),
    targets(
        "a Llama's names on GPT-2",
        "lora.target_modules … 'q_proj' … c_attn … c_fc … c_proj",
        family="gpt2",
        target_modules=["q_proj", "v_proj"],
    ),
    targets("a pattern in a list", f"lora.target_modules … '.*q_proj' … {LAYERS}", "lora", target_modules=[".*q_proj"]),
    targets("a star in a list", f"lora.target_modules … '*_proj' … {LAYERS}", "lora", target_modules=["*_proj"]),
    targets("a name without a list", f"lora.target_modules … 'q_proj' … {LAYERS}", "lora", target_modules="q_proj"),
    targets(
        "a pattern that fits nothing",
        f"lora.target_modules … '.*nothing' … {LAYERS}",
        "lora",
        target_modules=".*nothing",
    ),
    targets(
        "`all_linear` instead of `all-linear`",
        f"lora.target_modules … 'all_linear' … {LAYERS}",
        "lora",
        target_modules="all_linear",
    ),
    targets(
        "a broken pattern", "lora.target_modules … '(q_proj' … no regular expression", "lora", target_modules="(q_proj"
    ),
    targets(
        "a norm",
        f"lora.target_modules … 'input_layernorm' … LlamaRMSNorm … {LAYERS}",
        "lora",
        target_modules=["q_proj", "input_layernorm"],
    ),
    targets(
        "a whole block",
        f"lora.target_modules … 'self_attn' … LlamaAttention … {LAYERS}",
        "lora",
        target_modules=["self_attn"],
    ),
    targets(
        "an activation",
        f"lora.target_modules … 'act_fn' … SiLUActivation … {LAYERS}",
        "lora",
        target_modules=["act_fn", "q_proj"],
    ),
    targets(
        "a list of layers", f"lora.target_modules … 'layers' … ModuleList … {LAYERS}", "lora", target_modules=["layers"]
    ),
    targets(
        "a norm by a pattern, with qlora",
        f"lora.target_modules … '.*norm' … LlamaRMSNorm … {LAYERS}",
        "qlora",
        target_modules=".*norm",
    ),
    targets("a rank larger than any matrix", "lora.r … 100 … 64 … lower", r=100),
    targets("a rank larger than any matrix, in 4 bits", "lora.r … 100 … 64 … lower", "qlora", r=100),
    steps(
        "one step, in the warm-up",
        "train.batch_size … 32 … 64 … 1 … warm-up … train.gradient_accumulation … train.warmup … epochs",
        batch_size=64,
    ),
    steps(
        "one step of full fine-tuning, in the warm-up",
        "train.batch_size … 32 … 64 … 1 … warm-up … train.gradient_accumulation … train.warmup … epochs",
        method="full",
        batch_size=64,
    ),
    steps(
        "more batches accumulated than there are",
        "train.batch_size … 32 … 4000 … 1 … warm-up … train.gradient_accumulation … train.warmup … epochs",
        gradient_accumulation=1000,
    ),
    steps(
        "a thousandth of an epoch",
        "train.batch_size … 32 … 4 … 1 … warm-up … train.gradient_accumulation … train.warmup … epochs",
        epochs=0.001,
    ),
    steps(
        "one step, then a constant learning rate",
        "train.batch_size … 32 … 64 … 1 … warm-up … train.gradient_accumulation … train.warmup … epochs",
        scheduler="constant_with_warmup",
        batch_size=64,
    ),
    steps(
        "one step under linear decay",
        "train.batch_size … 32 … 1 … warm-up … train.gradient_accumulation … train.warmup … epochs",
        scheduler="linear",
        batch_size=32,
    ),
    *(
        steps(
            f"a learning rate too small to change a weight, {method}, in {dtype}",
            "learning_rate … 1e-30 … epochs",
            rate=1e-30,
            method=method,
            dtype=dtype,
        )
        for method in METHODS
        for dtype in ("fp32", "bf16")
    ),
    Fault(
        "adapters",
        "an adapter over other weights of the same shape",
        "models/tuned … other weights … mine … --model_name",
        over_other_weights,
    ),
    Fault("adapters", "an adapter's file cut short", "models/tuned … adapter … can't be loaded", cut_short),
]
