"""Base models as they lie on disk: in 4 bits, in fp16, pickled; and which base an adapter belongs to."""

import shutil

import families
import pytest
import torch
from helpers import FAST, base_for, stage, write_params
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from finetune import yaml_file
from finetune.methods import METHODS
from finetune.models.base import Base, fingerprint
from finetune.models.checkpoint import Checkpoint
from finetune.models.loading import load_base


@pytest.fixture
def copy(tiny_models, tmp_path):
    return shutil.copytree(tiny_models["llama"], tmp_path / "copy")


def in_4_bits(source, folder, **settings):
    bits = BitsAndBytesConfig(load_in_4bit=True, **settings)
    shutil.copytree(source, folder)
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(source, quantization_config=bits).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_qlora_trains_on_weights_that_are_stored_in_4_bits(workspace, tiny_models, capsys, kind, dtype):
    base = in_4_bits(tiny_models["llama"], workspace / "bits", bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=dtype)
    write_params(workspace, methods=FAST, quantization={"type": "nf4"})
    stage("prepare", "--model_name", base)
    stage("train", "--model_name", base, "--method", "qlora")
    assert "so the adapters start at zero" in capsys.readouterr().out
    stage("eval")
    stage("eval", "--base", "--model_name", base)


def test_what_is_stored_in_4_bits_multiplies_in_the_dtype_asked_for(workspace, tiny_models):
    base = in_4_bits(tiny_models["llama"], workspace / "bits", bnb_4bit_compute_dtype=torch.float16)
    model = load_base(Base(base), torch.float32)
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.quant_state.dtype == torch.float32


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("form", ["fp16", "sharded"])
def test_other_forms_of_the_same_weights_train(workspace, tiny_models, method, form):
    base = shutil.copytree(tiny_models["llama"], workspace / "other")
    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    if form == "fp16":
        halves = {name: weight.half() for name, weight in weights.items()}
        save_file(halves, base / "model.safetensors", metadata={"format": "pt"})
    else:
        model = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
        model.save_pretrained(base, max_shard_size="100KB")
    write_params(workspace)
    stage("prepare", "--model_name", base)
    stage("train", "--model_name", base, "--method", method)
    assert Checkpoint.read(workspace / "models/tuned").base_fingerprint == fingerprint(base)
    stage("eval")


@pytest.mark.parametrize("family", ["phi", "gpt_neox", "qwen2", "mixtral", "olmoe", "qwen3_moe", "jetmoe", "opt"])
@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_biased_heads_untied_heads_and_experts_train_and_are_read_again(
    workspace, tiny_models, tmp_path_factory, family, method
):
    base = families.with_tokenizer(family, tmp_path_factory.mktemp(family), tiny_models["llama"])
    write_params(workspace)
    stage("prepare", "--model_name", base)
    if METHODS[method].quantized:
        stage("quantize", "--model_name", base)
    stage("train", "--model_name", base, "--method", method)
    stage("eval")


@pytest.mark.parametrize("method", ["qlora", "lora", "dora"])
@pytest.mark.parametrize(("family", "names"), [("llama", ["embed_tokens", "q_proj"]), ("gpt2", ["wte", "c_attn"])])
def test_an_adapted_embedding_is_trained_and_read_again(workspace, tiny_models, family, names, method):
    write_params(workspace, lora={"target_modules": names})
    stage("prepare", "--model_name", tiny_models[family])
    stage("train", "--model_name", base_for(tiny_models, family, method), "--method", method)
    found = load_file(workspace / "models/tuned/adapter_model.safetensors")
    assert any("lora_embedding_B" in name and weight.abs().sum() > 0 for name, weight in found.items())
    stage("eval")


def test_a_base_fetched_again_is_the_same_base_and_another_is_not(copy, tiny_models):
    assert fingerprint(copy) == fingerprint(tiny_models["llama"])
    weights = load_file(copy / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(copy) != fingerprint(tiny_models["llama"])


def test_an_adapter_from_before_fingerprints_is_read_and_said_so(workspace, tiny_models, capsys):
    write_params(workspace)
    stage("prepare", "--model_name", tiny_models["llama"])
    stage("train", "--model_name", tiny_models["llama"], "--method", "lora")
    facts = workspace / "models/tuned/facts.yaml"
    known = yaml_file.read(facts)
    facts.write_text(yaml_file.text({k: v for k, v in known.items() if k not in ("base_fingerprint", "end_tokens")}))
    capsys.readouterr()
    stage("eval")
    said = f"models/tuned: notes no fingerprint of its base, so nobody can tell whether {tiny_models['llama']} is it\n"
    assert said in capsys.readouterr().err
