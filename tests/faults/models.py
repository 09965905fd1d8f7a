"""Mistakes with models."""

import pickle
import shutil
from functools import partial
from pathlib import Path

import torch
from helpers import stage
from transformers import AutoConfig, AutoModelForCausalLM

from faults import Bench, Fault
from faults.spoiled import Change, base, prepared, told, weights


def met_by_prepare(what: str, sentence: str, change: Change) -> Fault:
    """A model that no stage can use."""
    return Fault("models", what, sentence, lambda bench: bench.refused("prepare", "--model_name", base(bench, change)))


def met_by_train(what: str, sentence: str, change: Change, method: str = "lora") -> Fault:
    """A model whose weights or tokenizer can't be used, or not by the method."""

    def cause(bench: Bench) -> str:
        return bench.refused("train", "--model_name", prepared(bench, change), "--method", method)

    return Fault("models", what, sentence, cause)


def written(name: str, content: bytes) -> Change:
    """A file of the folder replaced."""
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str) -> Change:
    """A file of the folder cut in half."""
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


def pickled(folder: Path) -> None:
    """Weights in a pickle that would run a command."""

    class Bad:
        def __reduce__(self) -> tuple:
            return (print, ("run",))

    (folder / "model.safetensors").unlink()
    torch.save({"a": Bad()}, folder / "pytorch_model.bin", pickle_module=pickle)


def indexed(folder: Path) -> None:
    """Weights said to lie in a pickle outside the folder."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {"a": "../weights.bin"}}')


def quantized(**settings: object) -> Change:
    """A config that says in which form the weights are."""
    return partial(told, quantization_config=settings)


FAULTS: list[Fault] = [
    met_by_prepare(
        "config.json is cut short",
        "mine/config.json: is no JSON (…); fetch the model again",
        written("config.json", b"{"),
    ),
    met_by_prepare(
        "config.json holds a list",
        "mine/config.json: must hold one JSON object; fetch the model again",
        written("config.json", b"[]"),
    ),
    met_by_prepare(
        "a `model_type` that transformers doesn't know",
        "mine: config.json names the model_type 'llamma', which transformers doesn't know",
        partial(told, model_type="llamma"),
    ),
    met_by_prepare(
        "no `model_type` in config.json",
        "mine: config.json names the model_type None, which transformers doesn't know",
        partial(told, model_type=None),
    ),
    met_by_prepare(
        "Python code of the model's own (`auto_map`)",
        "mine: this model brings Python code of its own, which is never run here; choose another",
        partial(told, model_type="mine", auto_map={"AutoModelForCausalLM": "m.M"}),
    ),
    met_by_prepare(
        "a tokenizer that brings Python code of its own",
        "mine: the tokenizer brings Python code of its own, which is never run here; choose another model",
        lambda folder: (folder / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["m.Mine", null]}}'
        ),
    ),
    met_by_prepare(
        "an attention that is code on the Hub",
        "mine: config.json names code on the Hub (_attn_implementation: me/kernel), which is never run here; take that line out",
        partial(told, _attn_implementation="me/kernel"),
    ),
    met_by_prepare(
        "text where config.json needs a number",
        "mine: config.json is no valid config of a llama model: …",
        partial(told, num_attention_heads="four"),
    ),
    met_by_prepare(
        "an encoder with a decoder (T5)",
        "mine: t5 models have an encoder and a decoder; choose a causal language model",
        partial(told, model_type="t5"),
    ),
    met_by_prepare(
        "speech (Whisper)",
        "mine: whisper models have an encoder and a decoder; choose a causal language model",
        partial(told, model_type="whisper"),
    ),
    met_by_prepare(
        "an encoder alone (DistilBERT)",
        "mine: distilbert models aren't causal language models; choose one that is",
        partial(told, model_type="distilbert"),
    ),
    met_by_prepare(
        "pictures (LLaVA)",
        "mine: llava models read more than text (vision_config); choose one for text alone",
        partial(told, model_type="llava"),
    ),
    met_by_prepare(
        "pictures (Gemma 3)",
        "mine: gemma3 models read more than text (vision_config); choose one for text alone",
        partial(told, model_type="gemma3"),
    ),
    met_by_prepare(
        "no attention at all (Mamba)",
        "model.source: mamba models bring an attention of their own, which can't be replaced by the packed one; choose another",
        partial(told, model_type="mamba"),
    ),
    met_by_prepare(
        "an attention of its own (BLOOM)",
        "model.source: bloom models bring an attention of their own, which can't be replaced by the packed one; choose another",
        partial(told, model_type="bloom"),
    ),
    met_by_prepare(
        "an adapter given as a model",
        "mine: holds an adapter, not a model alone; give the base model that it belongs to",
        written("adapter_config.json", b"{}"),
    ),
    met_by_prepare(
        "no tokenizer",
        "mine: no tokenizer there (…)",
        lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
    ),
    met_by_prepare("tokenizer.json cut short", "mine: no tokenizer there (…)", cut("tokenizer.json")),
    met_by_train(
        "GPTQ weights",
        "mine: the weights are quantised already (gptq), which can't be trained here; choose the model's 16-bit weights, or those that bitsandbytes holds in 4 bits",
        quantized(quant_method="gptq", bits=4),
        "lora",
    ),
    met_by_train(
        "AWQ weights",
        "mine: the weights are quantised already (awq), which can't be trained here; choose the model's 16-bit weights, or those that bitsandbytes holds in 4 bits",
        quantized(quant_method="awq", bits=4),
        "qlora",
    ),
    met_by_train(
        "FP8 weights",
        "mine: the weights are quantised already (fp8), which can't be trained here; choose the model's 16-bit weights, or those that bitsandbytes holds in 4 bits",
        quantized(quant_method="fp8"),
        "full",
    ),
    met_by_train(
        "MXFP4 weights",
        "mine: the weights are quantised already (mxfp4), which can't be trained here; choose the model's 16-bit weights, or those that bitsandbytes holds in 4 bits",
        quantized(quant_method="mxfp4"),
        "lora",
    ),
    met_by_train(
        "bitsandbytes' 8-bit weights",
        "mine: the weights are quantised already (bitsandbytes 8-bit), which can't be trained here; choose the model's 16-bit weights, or those that bitsandbytes holds in 4 bits",
        quantized(quant_method="bitsandbytes", load_in_8bit=True),
        "qlora",
    ),
    met_by_train(
        "4-bit weights with `method: lora`",
        "method: lora trains 16-bit weights, and those in mine are in 4 bits already; choose qlora, or the model's 16-bit weights",
        quantized(quant_method="bitsandbytes", load_in_4bit=True),
        "lora",
    ),
    met_by_train(
        "4-bit weights with `method: dora`",
        "method: dora trains 16-bit weights, and those in mine are in 4 bits already; choose qlora, or the model's 16-bit weights",
        quantized(quant_method="bitsandbytes", load_in_4bit=True),
        "dora",
    ),
    met_by_train(
        "4-bit weights with `method: full`",
        "method: full trains 16-bit weights, and those in mine are in 4 bits already; choose qlora, or the model's 16-bit weights",
        quantized(quant_method="bitsandbytes", load_in_4bit=True),
        "full",
    ),
    met_by_train(
        "safetensors cut short",
        "mine: no causal language model can be loaded: Error while deserializing header: incomplete metadata, file not fully covered",
        cut("model.safetensors"),
        "lora",
    ),
    met_by_train(
        "an empty safetensors file",
        "mine: no causal language model can be loaded: Error while deserializing header: header too small",
        written("model.safetensors", b""),
        "lora",
    ),
    met_by_train(
        "a Git LFS pointer instead of the weights",
        "mine: no causal language model can be loaded: Error while deserializing header: header too large",
        written("model.safetensors", b"version https://git-lfs.github.com/spec/v1"),
        "lora",
    ),
    met_by_train(
        "no weights",
        "mine: holds no weights (model.safetensors); fetch the model again",
        lambda folder: (folder / "model.safetensors").unlink(),
        "lora",
    ),
    met_by_train(
        "a weight that isn't in the file",
        "mine: 1 of the model's weights aren't in its files (model.norm.weight, …); fetch it again",
        lambda folder: weights(folder, lambda found: found.pop("model.norm.weight")),
        "lora",
    ),
    met_by_train(
        "a config.json with more layers than the file",
        "mine: 9 of the model's weights aren't in its files (model.layers.2.input_layernorm.weight, …); fetch it again",
        partial(told, num_hidden_layers=3),
        "lora",
    ),
    met_by_train(
        "a config.json with fewer layers than the file",
        "mine: the files hold 9 weights more than config.json has (model.layers.1.input_layernorm.weight, …); fetch both from one place",
        partial(told, num_hidden_layers=1),
        "lora",
    ),
    met_by_train(
        "a config.json of other shapes",
        "mine: model.layers.0.mlp.down_proj.weight is 64 x 128 in the file, and by config.json 64 x 96; fetch both from one place",
        partial(told, intermediate_size=96),
        "lora",
    ),
    met_by_train(
        "a head that is its own by config.json and missing from the file",
        "mine: 1 of the model's weights aren't in its files (lm_head.weight, …); fetch it again",
        partial(told, tie_word_embeddings=False),
        "lora",
    ),
    met_by_train(
        "weights that are no numbers",
        "model.source: on … tokens the model's result is no finite number; its weights are damaged",
        lambda folder: weights(folder, lambda found: found["model.norm.weight"].fill_(float("nan"))),
        "lora",
    ),
    met_by_train(
        "weights as a pickle alone",
        "mine: holds its weights as a pickle alone (pytorch_model.bin), which could run code when it is read; choose a revision with .safetensors files, or convert it where you trust it: `from_pretrained`, then `save_pretrained`, of transformers",
        pickled,
        "lora",
    ),
    met_by_train(
        "an index that names a pickle, or a file elsewhere",
        "mine/model.safetensors.index.json: names '../weights.bin', which is no .safetensors file beside it; fetch the model again",
        indexed,
        "lora",
    ),
]


def broken_norm(what: str, value: float) -> Fault:
    """A model whose last norm is nothing but `value`, as after a training that diverged."""

    def cause(bench: Bench) -> str:
        from safetensors.torch import load_file, save_file

        folder = bench.folder / "broken"
        shutil.copytree(bench.models["llama"], folder)
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"].fill_(value)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        bench.params(eval={"max_new_tokens": 1})
        stage("prepare", "--model_name", folder)
        return bench.refused("eval", "--base", "--model_name", folder)

    sentence = "model.source: on … tokens the model's result is no finite number; its weights are damaged"
    return Fault("models", what, sentence, cause)


FAULTS += [
    broken_norm("weights that are NaN, in eval", float("nan")),
    broken_norm("weights so large that the logits overflow, in eval", 3e38),
]


def without_four_bits(bench: Bench) -> str:
    """QLoRA on a model that nobody rounded."""
    mine = prepared(bench, lambda folder: None)
    return bench.refused("train", "--model_name", mine, "--method", "qlora")


def other_four_bits(bench: Bench) -> str:
    """QLoRA on a model other than the one that was rounded."""
    mine = prepared(bench, lambda folder: None)
    stage("quantize", "--model_name", mine)
    weights(bench.folder / mine, lambda found: found["model.norm.weight"].mul_(2))
    return bench.refused("train", "--model_name", mine, "--method", "qlora")


def odd_width(bench: Bench) -> str:
    """A model whose layers have inputs that no block divides."""
    stage("prepare", "--model_name", bench.models["llama"])
    config = AutoConfig.from_pretrained(bench.models["llama"])
    config.intermediate_size = 100
    shutil.copytree(bench.models["llama"], bench.folder / "mine")
    AutoModelForCausalLM.from_config(config).save_pretrained(bench.folder / "mine")
    return bench.refused("quantize", "--model_name", "mine")


FAULTS += [
    Fault(
        "models",
        "qlora without a base in four bits",
        "models/base-4bit: not there; run `python stages/quantize.py --model_name mine` first",
        without_four_bits,
    ),
    Fault(
        "models",
        "qlora with the four bits of another model",
        "models/base-4bit: is made of other weights than those in mine; run `python stages/quantize.py --model_name mine`",
        other_four_bits,
    ),
    Fault(
        "models",
        "a layer whose inputs are no multiple of `quantization.block_size`",
        "quantization.block_size: model.layers.0.mlp.down_proj has 100 inputs, no multiple of 32; choose method lora, or another model",
        odd_width,
    ),
]


def linked(bench: Bench) -> str:
    """A model among whose files a link leads to another folder."""
    shutil.copytree(bench.models["llama"], bench.folder / "mine")
    (bench.folder / "secret.json").write_text("{}")
    (bench.folder / "mine/extra.json").symlink_to(bench.folder / "secret.json")
    return bench.refused("fetch", "model", "--model_name", "mine")


FAULTS += [
    Fault(
        "models",
        "a symbolic link that leads out of the folder of a model, or of data",
        "mine/extra.json: is a link that leads out of mine, to …/secret.json; put the file itself there, or remove the link",
        linked,
    ),
]
