"""The fused LoRA step, with replaced layers around it, equals peft's own layers, values and gradients."""

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from finetune import params
from finetune.kernels.layers import replace_layers
from finetune.kernels.lora import fuse
from finetune.methods import METHODS
from finetune.models.adapters import trainable
from finetune.models.base import load_base


def adapted(folder, method: str, dtype: torch.dtype):
    """A peft model as peft makes it, adapters drawn at random so that B isn't zero."""
    p = params.load()
    base = load_base(folder, dtype, p.quantization if method == "qlora" else None)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):  # GPT-2's own
            module.p = 0.0
    return model.train()


def outcome(model) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids = torch.arange(3, 51).reshape(2, 24)
    model.zero_grad()
    result = model(input_ids=ids, labels=ids).loss
    result.backward()
    return result.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("keep_dequantized", [True, False])
@pytest.mark.parametrize("method", ["qlora", "lora"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_equals_peft(tiny_models, family, method, keep_dequantized):
    model = adapted(tiny_models[family], method, torch.float32)
    expected_loss, expected = outcome(model)
    fuse(model, keep_dequantized=keep_dequantized)
    replace_layers(model)
    loss, gradients = outcome(model)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_layers_with_dropout_keep_their_own_forward(tiny_models):
    p = params.load()
    model = trainable(tiny_models["llama"], METHODS["qlora"], replace(p.lora, dropout=0.5), p.quantization)
    assert not any("forward" in vars(module) for module in model.modules() if isinstance(module, LoraLayer))


def test_a_fused_model_is_saved_as_peft_saves_it(tiny_models, tmp_path):
    model = adapted(tiny_models["llama"], "lora", torch.float32)
    fused = copy.deepcopy(model)
    fuse(fused, keep_dequantized=True)
    for name, one in (("plain", model), ("fused", fused)):
        one.save_pretrained(tmp_path / name)
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("plain", "fused")]
    assert weights[0] == weights[1]
