"""The engine makes the tokens that transformers makes of each prompt alone, or leaves the model to transformers."""

import gc

import families
import pytest
import torch
from families import alone
from peft import LoraConfig, get_peft_model

from finetune import params
from finetune.generation import greedy
from finetune.generation.engine import Engine
from finetune.generation.joint_layers import OWN
from finetune.generation.prepared_model import prepared
from finetune.generation.request import Request
from finetune.methods import METHODS
from finetune.models import loading
from finetune.models.base import Base, load_tokenizer
from finetune.models.checkpoint import Checkpoint
from finetune.models.loading import load_base

FITTING = [*families.PACKED, "gemma", "gemma3_text", "granite", "starcoder2"]


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 384, (size,), generator=generator).tolist() for size in (24, 7, 90, 9, 1, 40, 3, 61, 25)]


def loaded(family: str, folder, **settings):
    return load_base(Base(families.save(family, folder, **settings)), torch.float32).eval()


@torch.no_grad()
def ours(model, rows: list[list[int]], new_tokens: int, ends: list[int], slots: int = 4) -> list[list[int]]:
    requests = [Request(ids, new_tokens, ends, OWN) for ids in rows]
    with prepared(model, rows, new_tokens) as layers:
        assert layers
        engine = Engine(model, layers, slots, offline=True)
        for request in requests:
            engine.submit(request)
        while engine.requests:
            engine.step()
    return [request.made for request in requests]


@pytest.mark.parametrize("family", FITTING)
def test_every_prompt_gets_the_tokens_it_gets_alone(family, tmp_path):
    """More prompts than slots, of unlike length, ended by several tokens, one of them right at the start."""
    model, rows = loaded(family, tmp_path), prompts()
    free = [alone(model, row, 40, [0]) for row in rows]
    ends = [0, free[0][5], free[3][0], free[5][12]]
    expected = [alone(model, row, 40, ends) for row in rows]
    assert len({len(answer) for answer in expected}) > 1 and min(map(len, expected)) == 1
    assert ours(model, rows, 40, ends) == expected


@pytest.mark.parametrize("slots", [1, 3, 9, 100])
@pytest.mark.parametrize("new_tokens", [1, 2, 70])
def test_however_many_slots_and_tokens(tmp_path, slots, new_tokens):
    model, rows = loaded("llama", tmp_path), prompts()
    assert ours(model, rows, new_tokens, [0], slots) == [alone(model, row, new_tokens, [0]) for row in rows]


def test_more_slots_than_a_block_holds(tmp_path):
    model = loaded("llama", tmp_path)
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 384, (size % 37 + 1,), generator=generator).tolist() for size in range(100)]
    ends = list(range(0, 384, 12))
    expected = [alone(model, row, 30, ends) for row in rows]
    assert len(set(map(len, expected))) > 10
    for slots in (40, 70):
        assert ours(model, rows, 30, ends, slots) == expected


@pytest.mark.parametrize("family", families.STATEFUL)
def test_models_with_a_state_are_left_to_transformers(family, tmp_path, tiny_models):
    folder = families.with_tokenizer(family, tmp_path, tiny_models["llama"])
    model, words = load_base(Base(folder), torch.float32).eval(), load_tokenizer(folder)
    row = prompts()[0]
    with torch.no_grad(), prepared(model, [row], 10) as ready:
        assert not ready
    expected = words.decode(alone(model, row, 10, [0]), skip_special_tokens=True).strip()
    assert greedy.generate(model, words, [row], batch_size=2, max_new_tokens=10) == [expected]


@pytest.mark.parametrize(("new_tokens", "fits"), [(20, True), (60, False)])
def test_a_window_matters_where_an_answer_reaches_beyond_it(tmp_path, new_tokens, fits):
    model, rows = loaded("mistral", tmp_path, sliding_window=64), [prompts()[0]]
    with torch.no_grad(), prepared(model, rows, new_tokens) as ready:
        assert bool(ready) == fits


def tuned(family: str, method: str, tmp_path, monkeypatch, **lora: object):
    """(our model of an adapter drawn at random, peft's own of the same)."""
    monkeypatch.setattr(loading, "compute_dtype", lambda: torch.float32)
    base = families.save(family, tmp_path / "base")
    if method == "qlora":
        load_base(Base(base), torch.float32, params.load().quantization).save_pretrained(tmp_path / "bits")
        base = tmp_path / "bits"
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **{"r": 4, "lora_alpha": 8} | lora)
    theirs = get_peft_model(load_base(Base(base), torch.float32), config).eval()
    torch.manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path / "tuned")
    made = Checkpoint(tmp_path / "tuned", METHODS[method], 1, base, None, "alpaca", [], {}, {}, {})
    return loading.load_tuned(made, Base(base)).eval(), theirs


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("method", ["qlora", "lora", "dora"])
def test_adapters_are_part_of_every_product(family, method, tmp_path, monkeypatch):
    model, theirs = tuned(family, method, tmp_path, monkeypatch, use_dora=method == "dora")
    with torch.no_grad(), theirs.disable_adapter():
        untuned = [alone(theirs, row, 20, [0]) for row in prompts()]
    expected = [alone(theirs, row, 20, [0]) for row in prompts()]
    assert expected != untuned
    assert ours(model, prompts(), 20, [0]) == expected


@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_the_model_is_afterwards_what_it_was(method, tmp_path, monkeypatch):
    model, _ = tuned("llama", method, tmp_path, monkeypatch)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    ids = torch.tensor([prompts()[0]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        made = ours(model, prompts(), 8, [0])
        assert torch.equal(model(input_ids=ids).logits, before)
        assert ours(model, prompts(), 8, [0]) == made
    model(input_ids=ids).logits.sum().backward()  # nothing of inference is left in its weights


def test_four_bits_are_held_while_answering(tmp_path, monkeypatch):
    """Never more of the base in full width than the largest layer."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6}
    monkeypatch.setattr(families, "_SMALL", families._SMALL | shape)
    monkeypatch.setattr(families, "LARGEST", 10_000_000)
    model, _ = tuned("llama", "qlora", tmp_path, monkeypatch, r=1)
    layers = model.get_base_model().model.layers
    weights = [layer.weight for layer in layers[0].modules() if hasattr(getattr(layer, "weight", None), "quant_state")]
    layer_bytes = sum(weight.quant_state.shape.numel() * 4 for weight in weights)
    row, seen = [prompts()[1]], []
    gc.collect()
    before = live_bytes()
    for layer in layers:
        layer.mlp.register_forward_hook(lambda *_: seen.append(live_bytes() - before))
    ours(model, row, 3, [0])
    assert 0 < max(seen) < 1.1 * layer_bytes, f"{max(seen)} bytes more than the model, a layer has {layer_bytes}"


def live_bytes() -> int:
    """Of all tensors that Python knows of, storages counted once."""
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type == "cpu":
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


def test_progress_is_reported_after_each_batch_and_at_the_end(tmp_path, tiny_models):
    folder = families.with_tokenizer("llama", tmp_path, tiny_models["llama"])
    model, words, reported = load_base(Base(folder), torch.float32), load_tokenizer(folder), []
    greedy.generate(model, words, prompts(), batch_size=4, max_new_tokens=5, progress=reported.append)
    assert reported == [4, 8, 9]
