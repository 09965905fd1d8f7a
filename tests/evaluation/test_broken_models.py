"""Models whose sums are no numbers, or too large, or that say nothing."""

import json

import pytest
import torch
from helpers import refusal, stage
from transformers import AutoModelForCausalLM

from finetune.evaluation import scoring
from finetune.generation.greedy import GreedyAnswers


@pytest.fixture
def spoil(workspace, tiny_models, tmp_path):
    """Prepare for a tiny model; return a way to save it with its weights changed in place."""
    stage("prepare", "--model_name", tiny_models["llama"])

    def save(change):
        folder = tmp_path / "spoilt"
        model = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
        with torch.no_grad():
            change(model)
        model.save_pretrained(folder)
        for path in tiny_models["llama"].glob("*token*"):
            (folder / path.name).write_bytes(path.read_bytes())
        for path in tiny_models["llama"].glob("*.jinja"):
            (folder / path.name).write_bytes(path.read_bytes())
        return folder

    return save


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_loss_that_is_no_number_is_refused_before_the_model_answers(spoil, monkeypatch, value):
    folder = spoil(lambda model: model.model.norm.weight.fill_(value))
    monkeypatch.setattr(GreedyAnswers, "to", lambda *args, **kwargs: pytest.fail("answered first"))
    message = refusal("eval", "--base", "--model_name", folder)
    assert "the model's result is no finite number; its weights are damaged" in message


def test_a_perplexity_beyond_all_floats_is_null(spoil, workspace):
    folder = spoil(lambda model: model.model.norm.weight.fill_(1e6))
    stage("eval", "--base", "--model_name", folder)
    assert json.loads((workspace / "metrics/base.json").read_text())["test_loss"] > 710
    assert json.loads((workspace / "metrics/base.facts.json").read_text())["perplexity"] is None


@pytest.mark.parametrize(
    ("loss", "expected"),
    [(0.0, 1.0), (1.7409, 5.702), (709.0, pytest.approx(8.2e307, rel=0.01)), (710.0, None), (1e9, None)],
)
def test_perplexity(loss, expected):
    assert scoring.perplexity(loss) == expected


def test_answers_that_are_all_empty_are_counted(workspace, tiny_models, monkeypatch):
    stage("prepare", "--model_name", tiny_models["llama"])
    monkeypatch.setattr(GreedyAnswers, "to", lambda self, prompts, progress: [""] * len(prompts))
    stage("eval", "--base", "--model_name", tiny_models["llama"])
    facts = json.loads((workspace / "metrics/base.facts.json").read_text())
    scores = json.loads((workspace / "metrics/base.json").read_text())
    assert facts["empty_answers"] == 4 and scores["bleu"] == scores["rouge_l"] == 0
