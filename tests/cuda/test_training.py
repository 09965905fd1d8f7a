"""Every method trains, goes on from a snapshot, and answers; the same run gives the same bytes."""

import pytest
import torch
from helpers import Killed, interrupt
from transformers import GenerationConfig

from finetune.generation import greedy
from finetune.methods import METHODS
from finetune.training import trainer


@pytest.mark.parametrize("method", METHODS)
def test_learns_and_goes_on_from_a_snapshot_to_the_byte(
    device, deterministic, run, method, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("FINETUNE_SNAPSHOT_SECONDS", "0")
    whole = run("llama", method)
    assert next(whole.model.parameters()).device.type == device.type
    assert whole.result.validation_loss < whole.losses[0] - 0.3

    with monkeypatch.context() as patch:
        interrupt(patch, 8, trainer, "response_loss")
        with pytest.raises(Killed):
            run("llama", method, tmp_path)
    again = run("llama", method, tmp_path)
    assert "resuming after step" in capsys.readouterr().out
    assert again.result.validation_loss == whole.result.validation_loss
    assert all(torch.equal(again.weights[name], weight) for name, weight in whole.weights.items())


@pytest.mark.parametrize(("family", "method"), [("llama", "qlora"), ("gpt2", "lora"), ("llama", "full")])
def test_answers_are_those_of_transformers(device, drawn, tokenizer, family, method):
    model = drawn(family, method)
    prompts = [[5, 8, 11], [100, 103, 106, 109, 112], [7]]
    made = greedy.generate(model, tokenizer, prompts, batch_size=2, max_new_tokens=8)
    settings = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=[0], pad_token_id=0)
    for prompt, answer in zip(prompts, made, strict=True):
        ids = model.generate(input_ids=torch.tensor([prompt], device=model.device), generation_config=settings)
        assert answer == tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True).strip()
