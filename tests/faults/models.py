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


def met_by_prepare(what: str, names: str, change: Change) -> Fault:
    """A model that no stage can use."""
    return Fault("models", what, names, lambda bench: bench.refused("prepare", "--model_name", base(bench, change)))


def met_by_train(what: str, names: str, change: Change, method: str = "lora") -> Fault:
    """A model whose weights or tokenizer can't be used, or not by the method."""

    def cause(bench: Bench) -> str:
        return bench.refused("train", "--model_name", prepared(bench, change), "--method", method)

    return Fault("models", what, names, cause)


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


BITSANDBYTES = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def in_few_bits(what: str, named: str, method: str, place: str = "mine: … bitsandbytes", **settings: object) -> Fault:
    """Weights that `settings` in config.json say to be quantised, in a form that the method can't train."""
    names = f"{place} … {named} … 16-bit … 4 bits"
    return met_by_train(what, names, partial(told, quantization_config=settings), method)


def of_type(what: str, family: str, named: str) -> Fault:
    """A model of another kind by its config.json."""
    return met_by_prepare(what, f"{family} … {named}", partial(told, model_type=family))


FAULTS: list[Fault] = [
    met_by_prepare("config.json is cut short", "mine/config.json: … JSON … fetch", written("config.json", b"{")),
    met_by_prepare(
        "config.json holds a list", "mine/config.json: … JSON object … fetch", written("config.json", b"[]")
    ),
    met_by_prepare(
        "a `model_type` that transformers doesn't know",
        "mine: … config.json … model_type … 'llamma' … transformers",
        partial(told, model_type="llamma"),
    ),
    met_by_prepare(
        "no `model_type` in config.json",
        "mine: … config.json … model_type … None … transformers",
        partial(told, model_type=None),
    ),
    met_by_prepare(
        "Python code of the model's own (`auto_map`)",
        "mine: … model … Python code … never run … choose another",
        partial(told, model_type="mine", auto_map={"AutoModelForCausalLM": "m.M"}),
    ),
    met_by_prepare(
        "a tokenizer that brings Python code of its own",
        "mine: … tokenizer … Python code … never run … choose another",
        lambda folder: (folder / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["m.Mine", null]}}'
        ),
    ),
    met_by_prepare(
        "an attention that is code on the Hub",
        "mine: … config.json … code … _attn_implementation … me/kernel … never run",
        partial(told, _attn_implementation="me/kernel"),
    ),
    met_by_prepare(
        "text where config.json needs a number",
        "mine: … config.json … llama",
        partial(told, num_attention_heads="four"),
    ),
    of_type("an encoder with a decoder (T5)", "t5", "mine: … encoder … causal language model"),
    of_type("speech (Whisper)", "whisper", "mine: … encoder … causal language model"),
    of_type("an encoder alone (DistilBERT)", "distilbert", "mine: … causal language models"),
    of_type("pictures (LLaVA)", "llava", "mine: … vision_config … text"),
    of_type("pictures (Gemma 3)", "gemma3", "mine: … vision_config … text"),
    of_type("no attention at all (Mamba)", "mamba", "model.source: … attention … choose another"),
    of_type("an attention of its own (BLOOM)", "bloom", "model.source: … attention … choose another"),
    met_by_prepare(
        "an adapter given as a model", "mine: … adapter … base model", written("adapter_config.json", b"{}")
    ),
    met_by_prepare(
        "no tokenizer", "mine: … no tokenizer", lambda folder: [path.unlink() for path in folder.glob("tokenizer*")]
    ),
    met_by_prepare("tokenizer.json cut short", "mine: … no tokenizer", cut("tokenizer.json")),
    in_few_bits("GPTQ weights", "gptq", "lora", quant_method="gptq", bits=4),
    in_few_bits("AWQ weights", "awq", "qlora", quant_method="awq", bits=4),
    in_few_bits("FP8 weights", "fp8", "full", quant_method="fp8"),
    in_few_bits("MXFP4 weights", "mxfp4", "lora", quant_method="mxfp4"),
    in_few_bits("bitsandbytes' 8-bit weights", "8-bit", "qlora", quant_method="bitsandbytes", load_in_8bit=True),
    *(
        in_few_bits(f"4-bit weights with `method: {m}`", f"{m} … mine … qlora", m, "method:", **BITSANDBYTES)
        for m in ("lora", "dora", "full")
    ),
    met_by_train("safetensors cut short", "mine: … loaded … incomplete metadata", cut("model.safetensors")),
    met_by_train("an empty safetensors file", "mine: … loaded … header too small", written("model.safetensors", b"")),
    met_by_train(
        "a Git LFS pointer instead of the weights",
        "mine: … loaded … header too large",
        written("model.safetensors", b"version https://git-lfs.github.com/spec/v1"),
    ),
    met_by_train(
        "no weights", "mine: … model.safetensors … fetch", lambda folder: (folder / "model.safetensors").unlink()
    ),
    met_by_train(
        "a weight that isn't in the file",
        "mine: … 1 … model.norm.weight … fetch",
        lambda folder: weights(folder, lambda found: found.pop("model.norm.weight")),
    ),
    met_by_train(
        "a config.json with more layers than the file",
        "mine: … 9 … model.layers.2.input_layernorm.weight … fetch",
        partial(told, num_hidden_layers=3),
    ),
    met_by_train(
        "a config.json with fewer layers than the file",
        "mine: … 9 … config.json … model.layers.1.input_layernorm.weight … fetch",
        partial(told, num_hidden_layers=1),
    ),
    met_by_train(
        "a config.json of other shapes",
        "mine: … model.layers.0.mlp.down_proj.weight … 64 x 128 … config.json … 64 x 96 … fetch",
        partial(told, intermediate_size=96),
    ),
    met_by_train(
        "a head that is its own by config.json and missing from the file",
        "mine: … 1 … lm_head.weight … fetch",
        partial(told, tie_word_embeddings=False),
    ),
    met_by_train(
        "weights that are no numbers",
        "model.source: … finite … damaged",
        lambda folder: weights(folder, lambda found: found["model.norm.weight"].fill_(float("nan"))),
    ),
    met_by_train(
        "weights as a pickle alone", "mine: … pickle … pytorch_model.bin … .safetensors … `save_pretrained`", pickled
    ),
    met_by_train(
        "an index that names a pickle, or a file elsewhere",
        "mine/model.safetensors.index.json … '../weights.bin' … fetch",
        indexed,
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

    names = "model.source: … finite … damaged"
    return Fault("models", what, names, cause)


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
        "models/base-4bit … `python stages/quantize.py --model_name mine`",
        without_four_bits,
    ),
    Fault(
        "models",
        "qlora with the four bits of another model",
        "models/base-4bit: … other weights … mine … `python stages/quantize.py --model_name mine`",
        other_four_bits,
    ),
    Fault(
        "models",
        "a layer whose inputs are no multiple of `quantization.block_size`",
        "quantization.block_size … model.layers.0.mlp.down_proj … 100 … 32 … choose method lora",
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
        "mine/extra.json: … link … /secret.json … remove",
        linked,
    )
]
