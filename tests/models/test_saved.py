"""What training came to is kept: what can be tried before is, and if a save fails the weights are somewhere."""

import json
import shutil

import pytest
import torch
from helpers import drafts_in, files_in, refusal, stage, write_params
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune import files
from finetune.models import saved
from finetune.training import trainer

METHODS = pytest.mark.parametrize("method", ["lora", "full"])


@pytest.fixture
def ready(workspace, tiny_models):
    """The arguments of train on prepared data."""
    write_params(workspace)
    stage("prepare", "--model_name", tiny_models["llama"])
    return "--model_name", tiny_models["llama"]


@pytest.fixture
def untrained(monkeypatch):
    """Fails if training starts."""
    monkeypatch.setattr(trainer.ResponseTrainer, "train", lambda *_: pytest.fail("it trained"))


def raising(error):
    def raise_it(*_, **__):
        raise error

    return raise_it


@METHODS
@pytest.mark.parametrize(
    "generation", [{"do_sample": False, "temperature": 0.9}, {"num_beams": 1, "length_penalty": 2.0}]
)
def test_generation_settings_that_contradict_each_other_cost_no_run(workspace, tiny_models, method, generation):
    base = shutil.copytree(tiny_models["llama"], workspace / "mine")
    told = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(told | generation))
    stage("prepare", "--model_name", base)
    stage("train", "--model_name", base, "--method", method)
    assert (workspace / "models/tuned/facts.yaml").exists()


@METHODS
def test_a_tokenizer_that_cannot_be_saved_is_told_of_before_training(ready, untrained, monkeypatch, method):
    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", raising(ValueError("no vocabulary file")))
    message = refusal("train", *ready, "--method", method)
    assert message == "error: models/tuned: the model couldn't be saved when trained: no vocabulary file"


@METHODS
def test_a_disk_too_small_is_told_of_before_training(ready, untrained, monkeypatch, workspace, method):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    assert "models/tuned: 0.00 GB are free on its disk, and about" in refusal("train", *ready, "--method", method)
    assert not drafts_in(workspace) and not list((workspace / "models").glob("*"))


@pytest.mark.parametrize("out", ["mine.json/tuned", "a" * 250, "/proc/tuned"])
def test_a_place_that_cannot_be_written_is_told_of_before_training(ready, untrained, workspace, out):
    (workspace / "mine.json").write_text("{}")
    before = files_in(workspace)
    refused = refusal("train", *ready, "--method", "lora", "--out_dir", out)
    assert refused.startswith("error: ") and out[:190] in refused
    assert any(said in refused for said in ("can't be written", "lies in one", "the name is too long for this disk"))
    assert files_in(workspace) == before


@METHODS
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("shared tensors"), KeyError("x")]
)
def test_weights_that_cannot_be_saved_as_usual_are_rescued(ready, workspace, monkeypatch, method, error):
    kind = PeftModel if method == "lora" else PreTrainedModel
    monkeypatch.setattr(kind, "save_pretrained", raising(error))
    message = refusal("train", *ready, "--method", method)
    assert "the trained weights are in models/tuned.rescued.safetensors" in message
    weights = load_file(workspace / "models/tuned.rescued.safetensors")
    assert len(weights) == (28 if method == "lora" else 20)
    assert not drafts_in(workspace) and not (workspace / "models/tuned").exists()


def test_and_if_not_beside_the_folder_then_elsewhere(ready, monkeypatch, tmp_path):
    save_file, fails = saved.save_file, [True]
    monkeypatch.setattr(PeftModel, "save_pretrained", raising(OSError(28, "No space left on device")))
    monkeypatch.setattr(
        saved, "save_file", lambda *a: raising(OSError(28, "full"))() if fails and fails.pop() else save_file(*a)
    )
    monkeypatch.setattr(saved, "mkdtemp", lambda prefix, dir: str(tmp_path))
    assert f"the trained weights are in {tmp_path}/tuned.rescued.safetensors" in refusal(
        "train", *ready, "--method", "lora"
    )
    assert load_file(tmp_path / "tuned.rescued.safetensors")


def test_a_failed_save_leaves_the_earlier_model(ready, workspace, monkeypatch):
    stage("train", *ready, "--method", "lora")
    before = files_in(workspace / "models/tuned")
    monkeypatch.setattr(PeftModel, "save_pretrained", raising(OSError(28, "No space left on device")))
    refusal("train", *ready, "--method", "lora")
    assert files_in(workspace / "models/tuned") == before


def test_a_weight_that_is_no_block_of_memory_is_rescued_as_one(tmp_path):
    module = torch.nn.Linear(3, 2)
    module.weight.data = torch.arange(6.0).view(3, 2).t()
    saved._rescue(saved.trained(module), tmp_path / "tuned")
    assert torch.equal(load_file(tmp_path / "tuned.rescued.safetensors")["weight"], module.weight)
