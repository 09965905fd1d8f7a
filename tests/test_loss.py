"""The response-only loss equals the model's own, values and gradients."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from finetune import loss
from finetune.errors import UserError

IGNORE = -100


def batch(vocabulary: int) -> dict[str, torch.Tensor]:
    """Three sequences of unlike length, prompts and padding masked."""
    torch.manual_seed(0)
    ids = torch.randint(1, vocabulary, (3, 12))
    labels = ids.clone()
    attention = torch.ones_like(ids)
    for row, (prompt, length) in enumerate([(4, 12), (1, 9), (6, 7)]):
        labels[row, :prompt] = IGNORE
        labels[row, length:] = IGNORE
        attention[row, length:] = 0
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


@pytest.fixture(params=["llama", "gpt2"])
def model(request, tiny_models):
    return AutoModelForCausalLM.from_pretrained(tiny_models[request.param], dtype=torch.float32).eval()


def test_equals_the_models_own_loss_and_gradients(model):
    inputs = batch(model.config.vocab_size)
    targets = int((inputs["labels"][:, 1:] != IGNORE).sum())

    model(**inputs).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    expected_loss = model(**inputs).loss.item()
    model.zero_grad()
    ours = loss.response_loss(model, inputs) / targets
    ours.backward()

    assert ours.item() == pytest.approx(expected_loss, rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-7, msg=name)


def test_chunks_of_any_size_give_the_same(model, monkeypatch):
    inputs, found = batch(model.config.vocab_size), []
    for rows in (1, 4, 1000):
        monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * model.config.vocab_size * rows)
        model.zero_grad()
        value = loss.response_loss(model, inputs)
        value.backward()
        found.append((value, model.get_output_embeddings().weight.grad.clone()))
    for value, gradient in found[1:]:
        torch.testing.assert_close(value, found[0][0])
        torch.testing.assert_close(gradient, found[0][1])


def test_a_model_that_scales_its_logits_is_refused(model):
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(UserError, match="final_logit_softcapping"):
        loss.response_loss(model, batch(model.config.vocab_size))


def test_mean_over_batches_counts_every_token_once(model):
    inputs = batch(model.config.vocab_size)
    halves = [{key: value[part] for key, value in inputs.items()} for part in (slice(0, 1), slice(1, 3))]
    assert loss.mean_loss(model, halves) == pytest.approx(model(**inputs).loss.item(), rel=1e-6)
