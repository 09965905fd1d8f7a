"""Mistakes with adapters."""

import shutil
from functools import partial

from helpers import FAST, stage

from faults import Bench, Fault
from faults.spoiled import trained, weights


def targets(what: str, sentence: str, method: str = "lora", family: str = "llama", **lora: object) -> Fault:
    """Settings of `lora` that fit a tiny model not at all, or in part."""
    return Fault("adapters", what, sentence, partial(trained, method=method, family=family, lora=lora))


def steps(
    what: str, sentence: str, epochs: float = 1, rate: float = 0.01, method: str = "lora", **train: object
) -> Fault:
    """A run that would train nothing, or did."""
    methods = FAST | {method: {"learning_rate": rate, "epochs": epochs}}
    return Fault("adapters", what, sentence, partial(trained, method=method, methods=methods, train=train))


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


HEAD = "lora.target_modules: takes in the head over the vocabulary, which is never adapted here; leave it out"
LAYERS = "there are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"

FAULTS: list[Fault] = [
    targets("`target_modules: [lm_head, q_proj]`", HEAD, target_modules=["lm_head", "q_proj"]),
    targets("`target_modules: [lm_head]`", HEAD, target_modules=["lm_head"]),
    targets("`[lm_head]` with a tied head and qlora", HEAD, "qlora", target_modules=["lm_head"]),
    targets("`[lm_head]` with dora", HEAD, "dora", target_modules=["q_proj", "lm_head"]),
    targets("`[lm_head]` on GPT-2", HEAD, family="gpt2", target_modules=["c_attn", "lm_head"]),
    targets("a regex with the head in it", HEAD, target_modules=".*(q_proj|lm_head)"),
    targets(
        "a misspelt name in a list",
        f"lora.target_modules: the model has no module 'v_porj'; {LAYERS}",
        target_modules=["q_proj", "v_porj"],
    ),
    targets(
        "a misspelt name in a list, with dropout",
        f"lora.target_modules: the model has no module 'v_porj'; {LAYERS}",
        target_modules=["q_proj", "v_porj"],
        dropout=0.1,
    ),
    targets(
        "a Llama's names on GPT-2",
        "lora.target_modules: the model has no module 'q_proj'; there are c_attn, c_fc, c_proj",
        family="gpt2",
        target_modules=["q_proj", "v_proj"],
    ),
    targets(
        "a pattern in a list",
        f"lora.target_modules: the model has no module '.*q_proj'; {LAYERS}",
        "lora",
        target_modules=[".*q_proj"],
    ),
    targets(
        "a star in a list",
        f"lora.target_modules: the model has no module '*_proj'; {LAYERS}",
        "lora",
        target_modules=["*_proj"],
    ),
    targets(
        "a name without a list",
        f"lora.target_modules: the model has no module 'q_proj'; {LAYERS}",
        "lora",
        target_modules="q_proj",
    ),
    targets(
        "a pattern that fits nothing",
        f"lora.target_modules: the model has no module '.*nothing'; {LAYERS}",
        "lora",
        target_modules=".*nothing",
    ),
    targets(
        "`all_linear` instead of `all-linear`",
        f"lora.target_modules: the model has no module 'all_linear'; {LAYERS}",
        "lora",
        target_modules="all_linear",
    ),
    targets(
        "a broken pattern",
        "lora.target_modules: '(q_proj' is no regular expression (missing ), unterminated subpattern at position 0)",
        "lora",
        target_modules="(q_proj",
    ),
    targets(
        "a norm",
        f"lora.target_modules: 'input_layernorm' is a LlamaRMSNorm, which has no matrix of its own to adapt; {LAYERS}",
        "lora",
        target_modules=["q_proj", "input_layernorm"],
    ),
    targets(
        "a whole block",
        f"lora.target_modules: 'self_attn' is a LlamaAttention, which has no matrix of its own to adapt; {LAYERS}",
        "lora",
        target_modules=["self_attn"],
    ),
    targets(
        "an activation",
        f"lora.target_modules: 'act_fn' is a SiLUActivation, which has no matrix of its own to adapt; {LAYERS}",
        "lora",
        target_modules=["act_fn", "q_proj"],
    ),
    targets(
        "a list of layers",
        f"lora.target_modules: 'layers' is a ModuleList, which has no matrix of its own to adapt; {LAYERS}",
        "lora",
        target_modules=["layers"],
    ),
    targets(
        "a norm by a pattern, with qlora",
        f"lora.target_modules: '.*norm' is a LlamaRMSNorm, which has no matrix of its own to adapt; {LAYERS}",
        "qlora",
        target_modules=".*norm",
    ),
    targets(
        "a rank larger than any matrix",
        "lora.r: 100 is more than the rank of any adapted matrix, 64 at most; lower it",
        r=100,
    ),
    targets(
        "a rank larger than any matrix, in 4 bits",
        "lora.r: 100 is more than the rank of any adapted matrix, 64 at most; lower it",
        "qlora",
        r=100,
    ),
    steps(
        "one step, in the warm-up",
        "train.batch_size: 32 records in batches of 64 make 1 optimizer step, all of them in the warm-up at learning rate 0; lower train.batch_size, train.gradient_accumulation or train.warmup, or raise methods.<method>.epochs",
        batch_size=64,
    ),
    steps(
        "one step of full fine-tuning, in the warm-up",
        "train.batch_size: 32 records in batches of 64 make 1 optimizer step, all of them in the warm-up at learning rate 0; lower train.batch_size, train.gradient_accumulation or train.warmup, or raise methods.<method>.epochs",
        method="full",
        batch_size=64,
    ),
    steps(
        "more batches accumulated than there are",
        "train.batch_size: 32 records in batches of 4000 make 1 optimizer step, all of them in the warm-up at learning rate 0; lower train.batch_size, train.gradient_accumulation or train.warmup, or raise methods.<method>.epochs",
        gradient_accumulation=1000,
    ),
    steps(
        "a thousandth of an epoch",
        "train.batch_size: 32 records in batches of 4 make 1 optimizer step, all of them in the warm-up at learning rate 0; lower train.batch_size, train.gradient_accumulation or train.warmup, or raise methods.<method>.epochs",
        epochs=0.001,
    ),
    steps(
        "one step, then a constant learning rate",
        "train.batch_size: 32 records in batches of 64 make 1 optimizer step, all of them in the warm-up at learning rate 0; lower train.batch_size, train.gradient_accumulation or train.warmup, or raise methods.<method>.epochs",
        scheduler="constant_with_warmup",
        batch_size=64,
    ),
    steps(
        "one step under linear decay",
        "train.batch_size: 32 records in batches of 32 make 1 optimizer step, all of them in the warm-up at learning rate 0; lower train.batch_size, train.gradient_accumulation or train.warmup, or raise methods.<method>.epochs",
        scheduler="linear",
        batch_size=32,
    ),
    steps(
        "a learning rate too small to change a weight, lora",
        "training changed nothing that the model answers: raise methods.<method>.learning_rate, which is 1e-30, or methods.<method>.epochs",
        rate=1e-30,
        method="lora",
    ),
    steps(
        "a learning rate too small to change a weight, qlora",
        "training changed nothing that the model answers: raise methods.<method>.learning_rate, which is 1e-20, or methods.<method>.epochs",
        rate=1e-20,
        method="qlora",
    ),
    steps(
        "a learning rate too small to change a weight, dora",
        "training changed nothing that the model answers: raise methods.<method>.learning_rate, which is 1e-20, or methods.<method>.epochs",
        rate=1e-20,
        method="dora",
    ),
    steps(
        "a learning rate too small to change a weight, full",
        "training changed nothing that the model answers: raise methods.<method>.learning_rate, which is 1e-12, or methods.<method>.epochs",
        rate=1e-12,
        method="full",
    ),
    Fault(
        "adapters",
        "an adapter over other weights of the same shape",
        "models/tuned: this adapter was trained over other weights (fingerprint …) than those in mine (…); give its own base model as --model_name, or train again",
        over_other_weights,
    ),
    Fault(
        "adapters",
        "an adapter's file cut short",
        "models/tuned: the adapter can't be loaded: Error while deserializing header: …; train it again",
        cut_short,
    ),
]
