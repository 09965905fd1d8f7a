"""The device computes what a CPU computes in fp32: gradients, attention, four bits."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import scaled_dot_product_attention

from finetune.kernels import attention
from finetune.kernels.loss import response_loss
from finetune.kernels.packing import micro_batches, pack
from finetune.methods import METHODS
from finetune.models.base import Base
from finetune.models.loading import load_base

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 3e-3}
"""Length of the difference as a share of the length: sums in another order, and rounded factors."""


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach().cpu().float(), expected.detach().cpu().float()
    return ((found - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def on_a_cpu(folder, method, lora, rows, adapters_drawn):
    """Summed loss and gradients by transformers' and peft's own layers, each sequence alone, fp32."""
    model = load_base(Base(folder), torch.float32)
    if METHODS[method].adapters:
        options = METHODS[method].lora_options
        model.requires_grad_(False)
        config = LoraConfig(
            task_type="CAUSAL_LM", r=lora.r, lora_alpha=lora.alpha, target_modules="all-linear", **options
        )
        model = get_peft_model(model, config)
    adapters_drawn(model)
    total = 0.0
    for row in rows:
        ids, labels = (torch.tensor([row[key]]) for key in ("input_ids", "labels"))
        loss = model(input_ids=ids, labels=labels).loss * (labels[:, 1:] != -100).sum()
        loss.backward()
        total += loss.item()
    return total, gradients(model)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradients_are_those_of_a_cpu(device, on_cpu, bases, drawn, adapters_drawn, shipped, splits, family, method):
    rows = splits["train"][:6]
    with on_cpu():
        expected = on_a_cpu(bases(family, method), method, shipped.lora, rows, adapters_drawn)
    model = drawn(family, method)
    total = 0.0
    for part in micro_batches(pack(rows), 128):
        loss = response_loss(model, {key: value.to(device) for key, value in part.items()})
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(expected[0], rel=1e-4)
    found = gradients(model)
    assert found.keys() == expected[1].keys()
    for name, gradient in found.items():
        assert gradient.device.type == device.type
        assert distance(gradient, expected[1][name]) < 1e-3, name


LENGTHS = [5, 70, 1, 200, 44]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_packed_attention_is_each_sequence_s_own(device, dtype):
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(1, heads, sum(LENGTHS), 16, generator=draw).to(dtype) for heads in (4, 2, 2)]
    gradient = torch.randn(1, sum(LENGTHS), 4, 16, generator=draw).to(dtype)

    exact = [x.float().requires_grad_() for x in given]
    parts = [x.repeat_interleave(4 // x.shape[1], 1).split(LENGTHS, 2) for x in exact]
    out = torch.cat([scaled_dot_product_attention(q, k, v, is_causal=True) for q, k, v in zip(*parts, strict=True)], 2)
    expected = [out.transpose(1, 2), *torch.autograd.grad(out.transpose(1, 2), exact, gradient.float())]

    leaves = [x.to(device).requires_grad_() for x in given]
    mine, _ = attention.attend(torch.nn.Module(), *leaves, attention.mask_of(torch.tensor(LENGTHS, device=device)))
    found = [mine, *torch.autograd.grad(mine, leaves, gradient.to(device))]
    assert mine.device.type == device.type and mine.dtype == dtype
    assert max(map(distance, found, expected)) < TOLERANCE[dtype]


def weights_in_4_bits(folder) -> dict[str, torch.Tensor]:
    from bitsandbytes.functional import dequantize_4bit

    modules = dict(load_base(Base(folder), torch.float32).named_modules()).items()
    states = {name: getattr(getattr(module, "weight", None), "quant_state", None) for name, module in modules}
    return {
        name: dequantize_4bit(module.weight.data, states[name]).cpu()
        for name, module in modules
        if states[name] is not None
    }


@pytest.mark.parametrize("maker", ["cpu", "device"])
def test_what_one_device_has_put_into_four_bits_the_other_reads(
    device, on_cpu, bases, quantised, splits, tmp_path, maker
):
    folder = bases("llama", "qlora")
    if maker == "device":
        folder = tmp_path / "made"
        quantised(bases("llama", "lora"), folder, splits)
    found = weights_in_4_bits(folder)
    with on_cpu():
        expected = weights_in_4_bits(folder)
    assert found.keys() == expected.keys() and len(found) == 14
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=0)
