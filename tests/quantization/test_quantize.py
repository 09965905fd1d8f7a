"""The base model in four bits: made once, read by plain libraries, nearer to the 16-bit model than nearest rounding."""

import json
import shutil

import families
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from datasets import DatasetDict, load_from_disk
from helpers import FAST, files_in, refusal, stage, write_params
from peft import PeftModel
from transformers import AutoModelForCausalLM

from finetune import yaml_file
from finetune.data import prepared
from finetune.device import compute_dtype
from finetune.generation.greedy import generate
from finetune.models.adapters import trainable
from finetune.models.base import Base, load_tokenizer
from finetune.models.check_model import in_training_precision
from finetune.models.loading import load_base

FOUR = "models/base-4bit"


def made(workspace, base, **quantization) -> None:
    """models/base-4bit of the model in `base`."""
    write_params(workspace, methods=FAST, quantization=quantization)
    stage("prepare", "--model_name", base)
    stage("quantize", "--model_name", base)


def distance(workspace, base, model) -> float:
    """How far `model`'s logits over the training examples are from those of `base`: the root of the mean square."""
    plain = load_base(Base(base), compute_dtype())
    rows = load_from_disk(workspace / "data/prepared")["train"]["input_ids"][:16]
    with torch.no_grad(), in_training_precision(model):
        apart = [
            (model(torch.tensor([row])).logits.float() - plain(torch.tensor([row])).logits).flatten() for row in rows
        ]
    return torch.cat(apart).square().mean().sqrt().item()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("calibration", ["gptq", "nearest"])
def test_plain_transformers_and_peft_answer_as_ours(workspace, tiny_models, family, calibration):
    made(workspace, tiny_models[family], calibration=calibration)
    stage("train", "--model_name", tiny_models[family], "--method", "qlora")
    stage("eval")
    base = AutoModelForCausalLM.from_pretrained(workspace / FOUR, dtype=compute_dtype())
    assert any(isinstance(module, Linear4bit) for module in base.modules())
    plain = PeftModel.from_pretrained(base, workspace / "models/tuned", autocast_adapter_dtype=False)
    tokenizer = load_tokenizer(workspace / "models/tuned")
    test = prepared.load(workspace / "data/prepared", tokenizer)[0]["test"]
    # Two tokens less than ours, since these may be near-ties in 16 bits, which another number of threads rounds otherwise.
    theirs = generate(plain, tokenizer, prepared.prompt_ids(test), batch_size=4, max_new_tokens=6)
    ours = [json.loads(line)["prediction"] for line in (workspace / "data/predictions/tuned.jsonl").open()]
    assert all(theirs) and [own[: len(their)] for own, their in zip(ours, theirs, strict=True)] == theirs


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("block_size", [32, 64])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_what_is_stored_is_on_the_grid_that_was_asked_for(workspace, tiny_models, kind, block_size, double_quant):
    made(workspace, tiny_models["llama"], type=kind, block_size=block_size, double_quant=double_quant)
    model = load_base(Base(workspace / FOUR), torch.float32)
    state = model.model.layers[0].mlp.down_proj.weight.quant_state
    assert (state.quant_type, state.blocksize, state.nested) == (kind, block_size, double_quant)
    blocks = dequantize_4bit(model.model.layers[0].mlp.down_proj.weight.data, state).view(-1, block_size)
    assert max(len(block.unique()) for block in blocks) <= 16


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gptq_is_nearer_than_nearest_and_the_start_is_nearer_still(workspace, tiny_models, family):
    apart = {}
    for calibration in ("nearest", "gptq"):
        made(workspace, tiny_models[family], calibration=calibration)
        apart[calibration] = distance(
            workspace, tiny_models[family], load_base(Base(workspace / FOUR), compute_dtype())
        )
    assert apart["gptq"] < 0.9 * apart["nearest"]
    started = started_on(workspace)
    assert distance(workspace, tiny_models[family], started) < 0.9 * apart["gptq"]


def started_on(workspace, **lora):
    """The QLoRA model before its first step."""
    from finetune import params
    from finetune.methods import METHODS

    write_params(workspace, lora=lora or {"r": 16, "alpha": 32})
    return trainable(Base(workspace / FOUR), METHODS["qlora"], params.load().lora).eval()


def test_the_whole_rank_gives_the_weights_back(workspace, tiny_models):
    made(workspace, tiny_models["llama"])
    near = distance(workspace, tiny_models["llama"], started_on(workspace, r=64, alpha=7))
    assert near < 0.3 * distance(workspace, tiny_models["llama"], load_base(Base(workspace / FOUR), compute_dtype()))


def test_a_start_at_zero_is_the_base_in_four_bits(workspace, tiny_models):
    made(workspace, tiny_models["llama"])
    base = load_base(Base(workspace / FOUR), compute_dtype())
    far = distance(workspace, tiny_models["llama"], base)
    assert distance(workspace, tiny_models["llama"], started_on(workspace, start="zero")) == pytest.approx(
        far, rel=0.02
    )


def test_it_is_made_of_training_examples_alone_and_the_same_each_time(workspace, tiny_models):
    made(workspace, tiny_models["llama"])
    before = files_in(workspace / FOUR)
    splits = load_from_disk(workspace / "data/prepared")
    train = splits["train"]
    swapped = DatasetDict(train=train, validation=splits["test"], test=splits["validation"])
    facts = (workspace / "data/prepared/facts.yaml").read_text()
    swapped.save_to_disk(workspace / "other")
    (workspace / "other/facts.yaml").write_text(facts)
    stage("quantize", "--model_name", tiny_models["llama"], "--dataset", workspace / "other")
    assert files_in(workspace / FOUR) == before
    DatasetDict(train=splits["test"], validation=train, test=train).save_to_disk(workspace / "third")
    (workspace / "third/facts.yaml").write_text(facts)
    stage("quantize", "--model_name", tiny_models["llama"], "--dataset", workspace / "third")
    assert files_in(workspace / FOUR) != before


def test_only_so_many_examples_are_looked_at(workspace, tiny_models):
    made(workspace, tiny_models["llama"], examples=2)
    few = files_in(workspace / FOUR)["model.safetensors"]
    made(workspace, tiny_models["llama"], examples=1000)
    assert files_in(workspace / FOUR)["model.safetensors"] != few


def test_a_base_that_is_in_four_bits_stays_so(workspace, tiny_models, capsys):
    made(workspace, tiny_models["llama"])
    stored = shutil.copytree(workspace / FOUR, workspace / "stored")
    (stored / "lost.safetensors").unlink()
    stage("quantize", "--model_name", stored)
    assert "is in 4 bits already (nf4), and stays so" in capsys.readouterr().out
    assert files_in(workspace / FOUR)["model.safetensors"] == files_in(stored)["model.safetensors"]
    stage("train", "--model_name", stored, "--method", "qlora")
    assert "so the adapters start at zero" in capsys.readouterr().out
    stage("eval")


def test_a_model_whose_layers_take_more_than_their_input_is_rounded_to_the_nearest(workspace, tiny_models, monkeypatch):
    from finetune.quantization import calibration

    monkeypatch.setattr(calibration._Example, "through", lambda self, number, layer: self.hidden + 1)
    made(workspace, tiny_models["llama"])
    facts = yaml_file.read(workspace / FOUR / "facts.yaml")
    assert facts["quantization"]["calibration"] == "nearest"


@pytest.mark.parametrize("family", ["phi", "gpt_neox", "qwen2", "qwen3", "mixtral", "olmoe", "opt"])
def test_families(workspace, tiny_models, tmp_path_factory, family):
    base = families.with_tokenizer(family, tmp_path_factory.mktemp(family), tiny_models["llama"])
    made(workspace, base)
    facts = yaml_file.read(workspace / FOUR / "facts.yaml")
    assert facts["quantization"]["calibration"] == "gptq"
    stage("train", "--model_name", base, "--method", "qlora")
    stage("eval")


def test_the_4_bit_base_must_be_there_and_of_the_same_weights(workspace, tiny_models, copy_of_llama):
    write_params(workspace)
    stage("prepare", "--model_name", tiny_models["llama"])
    assert "models/base-4bit: not there; run" in refusal("train", "--model_name", tiny_models["llama"])
    stage("quantize", "--model_name", tiny_models["llama"])
    assert "is made of other weights than those in" in refusal("train", "--model_name", copy_of_llama)


@pytest.fixture
def copy_of_llama(tiny_models, tmp_path):
    """The same model with other weights."""
    folder = shutil.copytree(tiny_models["llama"], tmp_path / "copy")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.get_input_embeddings().weight.data.mul_(1.5)
    model.save_pretrained(folder)
    return folder
