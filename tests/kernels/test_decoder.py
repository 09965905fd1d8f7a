"""Decoder layers as one step equal transformers' and peft's own layers, values and gradients."""

import families
import pytest
import torch
from peft import LoraConfig, get_peft_model

from finetune import params
from finetune.errors import UserError
from finetune.kernels import attention
from finetune.kernels.decoder import replace_decoder_layers
from finetune.kernels.lora import fuse
from finetune.kernels.loss import response_loss
from finetune.kernels.packing import longest_micro_batch, micro_batches, pack
from finetune.models.base import Base
from finetune.models.loading import layer_stack, load_base

LENGTHS = [5, 70, 1, 200, 64]


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """So that a sequence has several blocks of queries, the last of them cut."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 64)


def rows(lengths=LENGTHS) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 384, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": one, "labels": [-100] * (len(one) // 3) + one[len(one) // 3 :]} for one in ids]


def loaded(family: str, method: str, folder, targets="all-linear", **settings):
    """A model in fp32 as `method` trains it, by transformers' and peft's own layers, adapters drawn at random."""
    quantization = params.load().quantization if method == "qlora" else None
    base = load_base(Base(families.save(family, folder / family, **settings)), torch.float32, quantization)
    if method == "full":
        return base.train()
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets)
    model = get_peft_model(base, config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


def by_the_model(model, given) -> tuple[float, dict[str, torch.Tensor]]:
    """Summed loss and gradients, each sequence alone in transformers' own forward."""
    total = 0.0
    for row in given:
        ids, labels = (torch.tensor([row[key]]) for key in ("input_ids", "labels"))
        count = int((labels[:, 1:] != -100).sum())
        if count:
            loss = model(input_ids=ids, labels=labels).loss * count
            loss.backward()
            total += loss.item()
    return total, gradients(model)


def in_steps(model, given, tokens=1000) -> tuple[float, dict[str, torch.Tensor]]:
    total = 0.0
    for part in micro_batches(pack(given), tokens):
        loss = response_loss(model, part)
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def replaced(model, tokens: int = 0) -> bool:
    fuse(model)
    return replace_decoder_layers(model, layer_stack(model), tokens)


def assert_equal(found, expected) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert set(found[1]) == set(expected[1])
    for name, gradient in found[1].items():
        size = expected[1][name].abs().max()
        torch.testing.assert_close(gradient, expected[1][name], rtol=1e-3, atol=1e-4 * size, msg=name)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_equals_the_models_own_layers(family, method, tmp_path):
    model = loaded(family, method, tmp_path)
    expected = by_the_model(model, rows())
    assert replaced(model)
    for tokens in (1000, 100):  # in one micro-batch, and in several whose gradients add up
        assert_equal(in_steps(model, rows(), tokens), expected)


def test_equals_where_few_layers_are_adapted(tmp_path):
    model = loaded("llama", "qlora", tmp_path, targets=["q_proj", "up_proj"])
    expected = by_the_model(model, rows())
    assert replaced(model)
    assert_equal(in_steps(model, rows()), expected)


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_checkpointing_changes_no_gradient(method, tmp_path):
    model = loaded("llama", method, tmp_path)
    assert replaced(model)
    expected = in_steps(model, rows())
    model.gradient_checkpointing_enable()
    found = in_steps(model, rows())
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][name], gradient) for name, gradient in expected[1].items())


def test_what_a_longer_pass_has_left_behind_changes_nothing(tmp_path):
    model = loaded("llama", "lora", tmp_path)
    assert replaced(model, 64)
    short, long = rows([20, 9]), rows([300])
    expected = in_steps(model, short)
    in_steps(model, long)
    found = in_steps(model, short)
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][name], gradient) for name, gradient in expected[1].items())


def test_a_forward_in_between_is_an_error(tmp_path):
    model = loaded("llama", "lora", tmp_path)
    assert replaced(model)
    (first,), (second,) = (micro_batches(pack(rows([length])), 1000) for length in (30, 40))
    loss = response_loss(model, first)
    response_loss(model, second)
    with pytest.raises(RuntimeError, match="another forward has gone through the model"):
        loss.backward()


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt2", {}),
        ("qwen3", {}),
        ("llama", {"attention_dropout": 0.1}),
        ("granite", {"residual_multiplier": 0.5}),
        ("glm", {}),
    ],
    ids=str,
)
def test_layers_that_compute_otherwise_stay_as_they_are(family, settings, tmp_path):
    model = loaded(family, "full", tmp_path, **settings)
    assert not replaced(model)
    assert not any("forward" in vars(layer) for layer in layer_stack(model))


def test_a_window_narrower_than_a_sequence_is_refused(tmp_path):
    model = loaded("mistral", "lora", tmp_path, sliding_window=64)
    assert replaced(model)
    in_steps(model, rows([64, 30]))
    with pytest.raises(UserError, match="this model attends to 64 tokens at most"):
        in_steps(model, rows([65]))


def test_dropout_and_dora_keep_peft_s_layers(tmp_path):
    for number, settings in enumerate(({"lora_dropout": 0.1}, {"use_dora": True})):
        base = load_base(Base(families.save("llama", tmp_path / str(number))), torch.float32)
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **settings))
        assert not replaced(model)


def test_the_longest_pass():
    assert longest_micro_batch([10, 100, 300, 200], sequences=2, tokens=1000) == 512
    assert longest_micro_batch([10, 100, 300, 200], sequences=4, tokens=400) == 448
    assert longest_micro_batch([10, 900], sequences=4, tokens=400) == 960
