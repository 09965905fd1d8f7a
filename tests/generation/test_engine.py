"""Requests over one base, each with its own adapter, get the tokens that peft's model of that adapter gives them alone."""

import families
import pytest
import torch
from families import alone
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from finetune import params
from finetune.errors import UserError
from finetune.generation.engine import Engine
from finetune.generation.prepared_model import prepared
from finetune.generation.request import Request, Sampling, draw
from finetune.kernels.lora import fuse
from finetune.models.base import Base
from finetune.models.loading import load_base
from finetune.serving.adapter_file import read_adapter

ADAPTERS = {
    "all": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "wide": {"r": 7, "lora_alpha": 5, "target_modules": "all-linear", "use_rslora": True},
    "few": {"r": 2, "lora_alpha": 4, "target_modules": None},
}
"""None means the first two linear layers of a family."""
FEW = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_fc"], "qwen2": ["v_proj", "gate_proj"]}


def prompts(number: int = 9) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    sizes = (24, 7, 90, 9, 1, 40, 3, 61, 25)[:number]
    return [torch.randint(1, 384, (size,), generator=generator).tolist() for size in sizes]


def base_in(family: str, folder, *, quantized: bool):
    base = families.save(family, folder / "base")
    if not quantized:
        return base
    load_base(Base(base), torch.float32, params.load().quantization).save_pretrained(folder / "bits")
    return folder / "bits"


def with_adapters(family: str, base, folder) -> PeftModel:
    """A model of peft's with all `ADAPTERS`, drawn at random and saved in `folder`."""
    model = None
    torch.manual_seed(0)
    for name, settings in ADAPTERS.items():
        config = LoraConfig(
            task_type="CAUSAL_LM", **settings | {"target_modules": settings["target_modules"] or FEW[family]}
        )
        if model is None:
            model = get_peft_model(load_base(Base(base), torch.float32), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model.eval()


def theirs(model: PeftModel, name: str | None, prompt: list[int], new_tokens: int, ends: list[int]) -> list[int]:
    if name is None:
        with model.disable_adapter():
            return alone(model, prompt, new_tokens, ends)
    model.set_adapter(name)
    return alone(model, prompt, new_tokens, ends)


@pytest.fixture
def engine():
    """Makes an engine over a base, with adapters read from a folder."""
    with torch.no_grad(), torch.random.fork_rng():
        opened = []

        def make(base, folder=None, slots: int = 4) -> Engine:
            model = load_base(Base(base), torch.float32).eval()
            context = prepared(model, prompts(2), 8)
            layers = context.__enter__()
            opened.append(context)
            for name in ADAPTERS if folder else ():
                layers.load(name, read_adapter(folder / name))
            return Engine(model, layers, slots)

        yield make
        for context in opened:
            context.__exit__(None, None, None)


def run(engine: Engine, requests: list[Request]) -> None:
    for request in requests:
        engine.submit(request)
    while engine.requests:
        engine.step()


@pytest.mark.parametrize("quantized", [True, False], ids=["4bit", "16bit"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_a_batch_mixes_adapters_and_the_base(family, quantized, tmp_path, engine):
    base = base_in(family, tmp_path, quantized=quantized)
    model = with_adapters(family, base, tmp_path / "tuned")
    names = [None, "all", "wide", "few", "all", "few", None, "wide", "all"]
    expected = [theirs(model, name, ids, 12, [0]) for name, ids in zip(names, prompts(), strict=True)]
    assert len({tuple(theirs(model, name, prompts()[0], 12, [0])) for name in (None, *ADAPTERS)}) == 4
    ours = engine(base, tmp_path / "tuned")
    requests = [Request(ids, 12, [0], name) for name, ids in zip(names, prompts(), strict=True)]
    run(ours, requests)
    assert [request.made for request in requests] == expected
    # One adapter alone takes another way through the products than a mixture.
    same = [Request(ids, 12, [0], "few") for ids in prompts(3)]
    run(ours, same)
    assert [request.made for request in same] == [theirs(model, "few", ids, 12, [0]) for ids in prompts(3)]


def test_an_adapter_of_other_shapes_is_refused_and_nothing_is_loaded(tmp_path, engine):
    base = base_in("llama", tmp_path, quantized=False)
    with_adapters("llama", base, tmp_path / "tuned")
    ours = engine(base)
    parts = read_adapter(tmp_path / "tuned" / "all")
    first, *_ = parts
    with pytest.raises(ValueError, match=r"no\.such\.layer"):
        ours._layers.load("broken", {"no.such.layer": parts[first]})
    with pytest.raises(UserError, match=r"can't be loaded"):
        (tmp_path / "tuned/all/adapter_model.safetensors").write_bytes(b"cut short")
        read_adapter(tmp_path / "tuned/all")


def test_requests_come_and_go_without_a_trace_in_the_others(tmp_path, engine):
    """More requests than slots; some come late, one is dropped while it waits, one in the middle of its answer."""
    base = base_in("llama", tmp_path, quantized=False)
    model = load_base(Base(base), torch.float32).eval()
    expected = [alone(model, ids, 12, [0]) for ids in prompts()]
    ours = engine(base, slots=3)
    requests = [Request(ids, 12, [0]) for ids in prompts()]
    for request in requests[:5]:
        ours.submit(request)
    for _ in range(4):
        ours.step()
    ours.cancel(requests[0])
    ours.cancel(requests[4])
    for request in requests[5:]:
        ours.submit(request)
        ours.step()
    while ours.requests:
        ours.step()
    ours.cancel(requests[1])  # has ended: nothing to drop
    assert requests[4].made == [] and 0 < len(requests[0].made) < 12
    assert requests[0].made == expected[0][: len(requests[0].made)]
    assert [requests[i].made for i in (1, 2, 3, 5, 6, 7, 8)] == [expected[i] for i in (1, 2, 3, 5, 6, 7, 8)]


def test_why_an_answer_ends(tmp_path, engine):
    base = base_in("llama", tmp_path, quantized=False)
    free = alone(load_base(Base(base), torch.float32).eval(), prompts()[0], 6, [0])
    ours = engine(base)
    closed, cut = Request(prompts()[0], 6, [free[2]]), Request(prompts()[0], 6, [0])
    run(ours, [closed, cut])
    assert (closed.reason, closed.made) == ("stop", free[: free.index(free[2]) + 1])
    assert (cut.reason, len(cut.made)) == ("length", 6)


def test_draws_repeat_by_their_seed_whatever_else_is_in_the_batch(tmp_path, engine):
    base = base_in("llama", tmp_path, quantized=False)
    ours = engine(base)

    def drawn(seed: int | None, others: int) -> list[int]:
        sampling = Sampling(temperature=1.5, seed=seed)
        request = Request(prompts()[0], 20, [0], None, sampling)
        run(ours, [request, *(Request(ids, 8, [0], None, Sampling(1.0)) for ids in prompts(others))])
        return request.made

    assert drawn(7, others=0) == drawn(7, others=3) != drawn(8, others=0)
    assert drawn(None, others=0) != drawn(None, others=0)
    narrow = [Request(prompts()[0], 20, [0], None, Sampling(2.0, top_k=1)), Request(prompts()[0], 20, [0])]
    run(ours, narrow)
    assert narrow[0].made == narrow[1].made


@pytest.mark.parametrize("settings", [(0.7, 1.0, 0), (1.0, 0.6, 0), (1.3, 0.8, 20), (2.0, 1.0, 5), (1.0, 0.01, 0)])
def test_tokens_are_drawn_as_transformers_bounds_them(settings):
    """Each token that transformers keeps comes as often as its probability says, and no other one comes."""
    temperature, top_p, top_k = settings
    logits = torch.randn(60, generator=torch.Generator().manual_seed(1)) * 2
    scores = TemperatureLogitsWarper(temperature)(None, logits[None])
    scores = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
    expected = TopPLogitsWarper(top_p)(None, scores)[0].softmax(-1)
    generator = torch.Generator().manual_seed(2)
    draws = torch.tensor([draw(logits, Sampling(temperature, top_p, top_k), generator) for _ in range(3000)])
    found = torch.bincount(draws, minlength=60) / len(draws)
    assert set(draws.tolist()) <= set(expected.nonzero().flatten().tolist())
    assert (found - expected).abs().max() < 0.04


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("temperature", float("nan")), ("top_p", 0.0), ("top_k", -1), ("seed", -1)],
)
def test_a_setting_out_of_range_is_refused(field, value):
    with pytest.raises(UserError, match=f"{field}: must be"):
        Sampling(**{field: value})


@pytest.mark.parametrize("family", families.STATEFUL[:1])
def test_a_model_with_a_state_is_answered_by_transformers(family, tmp_path):
    model = load_base(Base(families.save(family, tmp_path)), torch.float32).eval()
    engine = Engine(model, None, slots=4)
    requests = [Request(ids, 10, [0]) for ids in prompts(3)]
    run(engine, requests)
    assert [one.made for one in requests] == [alone(model, ids, 10, [0]) for ids in prompts(3)]
    drawn = [Request(prompts()[0], 10, [0], None, Sampling(1.5, seed=seed)) for seed in (3, 3, 4)]
    run(engine, drawn)
    assert drawn[0].made == drawn[1].made != drawn[2].made


def test_a_fused_model_follows_peft_when_adapters_are_off_merged_or_mixed(tmp_path):
    base = base_in("llama", tmp_path, quantized=False)
    plain, fused = with_adapters("llama", base, tmp_path / "tuned"), None
    fused = PeftModel.from_pretrained(
        load_base(Base(base), torch.float32), tmp_path / "tuned/all", adapter_name="all"
    ).eval()
    fuse(fused)
    fused.load_adapter(tmp_path / "tuned/wide", "wide")
    ids = torch.tensor([prompts()[0]] * 3)

    @torch.no_grad()
    def logits(model, **more):
        return model(input_ids=ids, **more).logits

    for name in ("all", "wide"):
        plain.set_adapter(name)
        fused.set_adapter(name)
        torch.testing.assert_close(logits(fused), logits(plain), rtol=1e-3, atol=1e-4)
        with plain.disable_adapter(), fused.disable_adapter():
            torch.testing.assert_close(logits(fused), logits(plain), rtol=1e-3, atol=1e-4)
    mixed = {"adapter_names": ["all", "__base__", "wide"]}
    torch.testing.assert_close(logits(fused, **mixed), logits(plain, **mixed), rtol=1e-3, atol=1e-4)
    before = logits(fused)
    fused.merge_adapter()
    torch.testing.assert_close(logits(fused), before, rtol=1e-3, atol=1e-4)
    fused.unmerge_adapter()
    torch.testing.assert_close(logits(fused), before, rtol=1e-3, atol=1e-4)
