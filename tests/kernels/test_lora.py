"""The fused LoRA step, with replaced layers around it, equals peft's own layers, values and gradients."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import base_for
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from finetune import params
from finetune.kernels.layers import replace_layers
from finetune.kernels.lora import fuse
from finetune.kernels.loss import response_loss
from finetune.kernels.packing import micro_batches, pack
from finetune.methods import METHODS
from finetune.models.adapters import trainable
from finetune.models.base import Base
from finetune.models.loading import load_base


def adapted(folder, dtype: torch.dtype):
    """A peft model as peft makes it, adapters drawn at random so that B isn't zero."""
    base = load_base(Base(folder), dtype)
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


@pytest.mark.parametrize("method", ["qlora", "lora"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_equals_peft(tiny_models, family, method):
    model = adapted(base_for(tiny_models, family, method), torch.float32)
    expected_loss, expected = outcome(model)
    fuse(model)
    replace_layers(model)
    loss, gradients = outcome(model)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_layers_with_dropout_keep_their_own_forward(tiny_models):
    p = params.load()
    model = trainable(Base(tiny_models["llama-4bit"]), METHODS["qlora"], replace(p.lora, dropout=0.5))
    assert not any("forward" in vars(module) for module in model.modules() if isinstance(module, LoraLayer))


def test_a_fused_model_is_saved_as_peft_saves_it(tiny_models, tmp_path):
    model = adapted(tiny_models["llama"], torch.float32)
    fused = copy.deepcopy(model)
    fuse(fused)
    for name, one in (("plain", model), ("fused", fused)):
        one.save_pretrained(tmp_path / name)
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("plain", "fused")]
    assert weights[0] == weights[1]


class WidenedWeights(TorchDispatchMode):
    """The most bytes of floating-point tensors in the shapes of `shapes` that were alive at once in the block."""

    def __init__(self, shapes: set[torch.Size]) -> None:
        super().__init__()
        self.shapes, self.most = shapes, 0
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_floating_point() and {result.shape} & self.shapes:
            storage = result.untyped_storage()
            self.alive[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
            self.alive = {at: one for at, one in self.alive.items() if not one[0].expired()}
            self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return result


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_at_no_time_is_more_than_one_layer_of_a_4_bit_base_wide(tiny_models, targets, dropout):
    p = params.load()
    lora = replace(p.lora, target_modules=targets, dropout=dropout)
    model = trainable(Base(tiny_models["llama-4bit"]), METHODS["qlora"], lora).train()
    states = [getattr(q, "quant_state", None) for q in model.model.model.layers[0].parameters()]
    shapes = [state.shape for state in states if state is not None]
    q, k, v, o, gate, up, down = shapes
    joint = {
        torch.Size((sum(one[0] for one in group), group[0][1])) for group in ((q, k, v), (o,), (gate, up), (down,))
    }
    ids = list(range(1, 151))  # filled to 192 rows: no activation has the shape of a weight
    batch = next(micro_batches(pack([{"input_ids": ids, "labels": ids}]), 1000))
    with WidenedWeights({*shapes, *joint, *(torch.Size(shape[::-1]) for shape in joint)}) as seen:
        response_loss(model, batch).backward()
    width = torch.finfo(states[-1].dtype if states[-1] else torch.float32).bits // 8
    assert len(shapes) == 7
    assert 0 < seen.most <= width * sum(map(torch.Size.numel, shapes))
