"""The split of memory agrees with what a model of known shape must hold."""

import pytest
import torch
from helpers import base_for

from finetune import params
from finetune.costs.memory_parts import Activations, MemoryParts, memory_parts, split_peak
from finetune.kernels import loss
from finetune.kernels.adamw import SplitAdamW
from finetune.kernels.packing import micro_batches, pack
from finetune.methods import METHODS
from finetune.models.adapters import trainable
from finetune.models.base import Base
from finetune.models.loading import load_base

IDS = list(range(1, 129))
BATCH = next(micro_batches(pack([{"input_ids": IDS[:64], "labels": IDS[:64]}]), 1000))


def step(models, method: str) -> tuple[torch.nn.Module, MemoryParts]:
    """A model after one step, and its split in bytes."""
    p = params.load()
    model = trainable(Base(base_for(models, "llama", method)), METHODS[method], p.lora).train()
    optimizer = SplitAdamW([q for q in model.parameters() if q.requires_grad], lr=1e-3)
    activations = Activations(model)
    with activations.watch(64):
        value = loss.response_loss(model, BATCH)
    value.backward()
    optimizer.step()
    return model, memory_parts(model, optimizer, activations)


def size(tensors) -> float:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e9


@pytest.mark.parametrize("method", METHODS)
def test_gradients_and_adapters_are_the_trained_weights(tiny_models, method):
    model, parts = step(tiny_models, method)
    trained = [q for q in model.parameters() if q.requires_grad]
    assert parts.gradients == pytest.approx(size(q.grad for q in trained))
    assert parts.adapters == (pytest.approx(size(trained)) if method != "full" else 0.0)


def test_optimizer_state_is_two_moments_and_for_bf16_weights_their_lower_halves(cpu_dtype, tiny_models):
    model, parts = step(tiny_models, "full")
    counts = {
        dtype: sum(q.numel() for q in model.parameters() if q.dtype == dtype)
        for dtype in (torch.bfloat16, torch.float32)
    }
    per_weight = {torch.bfloat16: (4, 10), torch.float32: (8, 8)}
    least, most = (sum(counts[d] * per_weight[d][i] for d in counts) / 1e9 for i in (0, 1))
    assert least <= parts.optimizer <= 1.01 * most + 1e-6


def test_qlora_holds_four_bits_a_weight_and_their_constants(tiny_models):
    model, parts = step(tiny_models, "qlora")
    blocks = [q for q in model.parameters() if q.dtype == torch.uint8]
    others = [q for q in model.parameters() if q.is_floating_point() and not q.requires_grad]
    assert blocks and size(blocks + others) <= parts.weights <= 1.1 * size(blocks + others) + 2e-5


def test_only_a_larger_micro_batch_is_counted_anew(tiny_models):
    model = load_base(Base(tiny_models["llama"]), torch.float32).train()
    activations = Activations(model)
    seen = []
    for count in (16, 128, 32):
        rows = next(micro_batches(pack([{"input_ids": IDS[:count], "labels": IDS[:count]}]), 1000))
        with activations.watch(count):
            value = loss.response_loss(model, rows)  # held, as is what it keeps for its backward pass
        assert value.requires_grad
        seen.append(activations.bytes)
    assert 0 < seen[0] < seen[1] == seen[2]


@pytest.mark.parametrize("method", METHODS)
def test_activations_are_the_same_at_each_count(tiny_models, method):
    assert len({step(tiny_models, method)[1].activations for _ in range(4)}) == 1


def test_checkpointing_keeps_less(tiny_models):
    kept = {}
    for checkpointing in (False, True):
        model = load_base(Base(tiny_models["llama"]), torch.float32).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        activations = Activations(model)
        with activations.watch(64):
            value = loss.response_loss(model, BATCH)
        assert value.requires_grad
        kept[checkpointing] = activations.bytes
    assert kept[True] < 0.5 * kept[False]


def test_the_parts_and_the_rest_make_up_the_peak(tiny_models):
    _, parts = step(tiny_models, "qlora")
    assert sum(split_peak(parts, peak_gb=1.0).values()) == pytest.approx(1.0, abs=0.003)
