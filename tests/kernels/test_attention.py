"""Packed attention equals torch's causal attention on each sequence alone, values and gradients."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, BloomConfig

from finetune.errors import UserError
from finetune.kernels import attention
from finetune.kernels.loss import response_loss
from finetune.kernels.packing import micro_batches, pack
from finetune.models.base import Base
from finetune.models.loading import load_base

LENGTHS = [1, 63, 64, 65, 200, 300]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (4, 1)])
def test_equals_torch_on_each_sequence(heads, key_heads, dtype, tolerance):
    torch.manual_seed(0)
    tokens = sum(LENGTHS)
    inputs = [torch.randn(1, n, tokens, 16, dtype=dtype, requires_grad=True) for n in (heads, key_heads, key_heads)]
    parts = zip(*(x.split(LENGTHS, 2) for x in inputs), strict=True)
    alone = [scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True) for part in parts]
    expected = torch.cat(alone, 2).transpose(1, 2)
    found, _ = attention.attend(None, *inputs, attention.mask_of(torch.tensor(LENGTHS)))
    weights = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, inputs, weights)
    found_gradients = torch.autograd.grad(found, inputs, weights)
    for mine, theirs in zip((found, *found_gradients), (expected, *expected_gradients), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def test_a_model_with_a_narrow_window_is_refused():
    inputs = [torch.randn(1, 2, 8, 4) for _ in range(3)]
    with pytest.raises(UserError, match="this model attends to 4 tokens"):
        attention.attend(None, *inputs, attention.mask_of(torch.tensor([8])), sliding_window=4)


def test_a_sequence_does_not_see_its_neighbours(tiny_models):
    model = load_base(Base(tiny_models["llama"]), torch.float32).eval()
    rows = [{"input_ids": ids, "labels": ids} for ids in ([5, 6, 7, 8], [9, 10, 11], [12, 13])]

    def total(chosen) -> float:
        return sum(response_loss(model, part).item() for part in micro_batches(pack(chosen), 1000))

    assert total(rows) == pytest.approx(sum(total([row]) for row in rows), rel=1e-6)
    assert total(rows) == pytest.approx(total(rows[::-1]), rel=1e-6)


def test_a_model_whose_attention_cannot_be_replaced_is_refused(tmp_path):
    config = BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="bloom models bring an attention of their own"):
        load_base(Base(tmp_path), torch.float32)
