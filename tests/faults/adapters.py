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


def no_module(what: str, named: str, modules: object, method: str = "lora", **lora: object) -> Fault:
    """Targets of which one, `named` in the sentence, is no layer of a Llama that could be adapted."""
    names = f"lora.target_modules … {named} … {LAYERS}"
    return targets(what, names, method, target_modules=modules, **lora)


def in_the_warm_up(what: str, batch: int, **how: object) -> Fault:
    """A run of one step, at learning rate 0, with `batch` records in it."""
    names = "train.batch_size … 1 … warm-up … train.gradient_accumulation … train.warmup … .epochs"
    return steps(what, f"32 … {batch} … {names}", **how)


FAULTS: list[Fault] = [
    targets("`target_modules: [lm_head, q_proj]`", HEAD, target_modules=["lm_head", "q_proj"]),
    targets("`target_modules: [lm_head]`", HEAD, target_modules=["lm_head"]),
    targets("`[lm_head]` with a tied head and qlora", HEAD, "qlora", target_modules=["lm_head"]),
    targets("`[lm_head]` with dora", HEAD, "dora", target_modules=["q_proj", "lm_head"]),
    targets("`[lm_head]` on GPT-2", HEAD, family="gpt2", target_modules=["c_attn", "lm_head"]),
    targets("a regex with the head in it", HEAD, target_modules=".*(q_proj|lm_head)"),
    no_module("a misspelt name in a list", "'v_porj'", ["q_proj", "v_porj"]),
    no_module("a misspelt name in a list, with dropout", "'v_porj'", ["q_proj", "v_porj"], dropout=0.1),
    targets(
        "a Llama's names on GPT-2",
        "lora.target_modules … 'q_proj' … c_attn … c_fc … c_proj",
        family="gpt2",
        target_modules=["q_proj", "v_proj"],
    ),
    no_module("a pattern in a list", "'.*q_proj'", [".*q_proj"]),
    no_module("a star in a list", "'*_proj'", ["*_proj"]),
    no_module("a name without a list", "'q_proj'", "q_proj"),
    no_module("a pattern that fits nothing", "'.*nothing'", ".*nothing"),
    no_module("`all_linear` instead of `all-linear`", "'all_linear'", "all_linear"),
    targets("a broken pattern", "lora.target_modules … '(q_proj' … no regular expression", target_modules="(q_proj"),
    no_module("a norm", "'input_layernorm' … LlamaRMSNorm", ["q_proj", "input_layernorm"]),
    no_module("a whole block", "'self_attn' … LlamaAttention", ["self_attn"]),
    no_module("an activation", "'act_fn' … SiLUActivation", ["act_fn", "q_proj"]),
    no_module("a list of layers", "'layers' … ModuleList", ["layers"]),
    no_module("a norm by a pattern, with qlora", "'.*norm' … LlamaRMSNorm", ".*norm", "qlora"),
    targets("a rank larger than any matrix", "lora.r … 100 … 64 … lower", r=100),
    targets("a rank larger than any matrix, in 4 bits", "lora.r … 100 … 64 … lower", "qlora", r=100),
    in_the_warm_up("one step, in the warm-up", 64, batch_size=64),
    in_the_warm_up("one step of full fine-tuning, in the warm-up", 64, method="full", batch_size=64),
    in_the_warm_up("more batches accumulated than there are", 4000, gradient_accumulation=1000),
    in_the_warm_up("a thousandth of an epoch", 4, epochs=0.001),
    in_the_warm_up("one step, then a constant learning rate", 64, scheduler="constant_with_warmup", batch_size=64),
    in_the_warm_up("one step under linear decay", 32, scheduler="linear", batch_size=32),
    *(
        steps(
            f"a learning rate too small to change a weight, {method}, in {dtype}",
            ".learning_rate … 1e-30 … .epochs",
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
