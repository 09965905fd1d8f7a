"""A model is compared with itself before it is trained: what packs, what goes alone, what is refused."""

import families
import pytest
import torch
from datasets import Dataset
from helpers import refusal, stage, write_params
from torch.nn.functional import cross_entropy

from finetune.errors import UserError
from finetune.kernels.loss import response_loss
from finetune.kernels.packing import micro_batches, pack
from finetune.models import check_model
from finetune.models.base import Base
from finetune.models.loading import load_base

REFUSED = {
    "bloom": "attention of their own",
    "mpt": "attention of their own",
    "gpt_neo": "attention of their own",
    "gptj": "attention of their own",
    "codegen": "attention of their own",
    "falcon": "attention of their own",
    "mamba": "attention of their own",
    "cohere": "change their logits after the head",
    "recurrent_gemma": "change their logits after the head",
    "gemma2": "can't be trained here",
    "gpt_oss": "s_aux",
    "roberta": "off the model's own",
}


def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 384, (length,), generator=generator).tolist() for length in (24, 150, 9, 40)]


def loaded(family: str, folder, monkeypatch, **settings):
    monkeypatch.setattr(check_model, "compute_dtype", lambda: torch.float32)
    return load_base(Base(families.save(family, folder, **settings)), torch.float32).eval()


def checked(model, given: list[list[int]]) -> bool:
    return check_model.check_model(model, Dataset.from_dict({"input_ids": given}), padding=0)


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def check_gradients(model, packed: bool) -> None:
    """Loss and gradients here equal those of the model's own logits, each sequence alone."""
    own = torch.zeros(())
    for ids in rows():
        tokens = torch.tensor([ids])
        own = own + cross_entropy(
            model(input_ids=tokens, use_cache=False).logits[0, :-1], tokens[0, 1:], reduction="sum"
        )
    own.backward()
    expected = gradients(model)
    total = 0.0
    batch = pack([{"input_ids": ids, "labels": ids} for ids in rows()])
    for part in micro_batches(batch, 1000 if packed else 1):
        loss = response_loss(model, part)
        loss.backward()
        total += loss.item()
    found = gradients(model)
    assert total == pytest.approx(own.item(), rel=1e-5)
    assert set(found) == set(expected)
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 2e-3 * (gradient.norm() + 0.1 * largest), name


@pytest.mark.parametrize("family", [*families.PACKED, *families.STATEFUL])
def test_what_passes_trains_as_the_plain_form(tmp_path, monkeypatch, family):
    model = loaded(family, tmp_path, monkeypatch)
    packed = checked(model, rows())
    assert packed == (family in families.PACKED)
    check_gradients(model, packed)


@pytest.mark.parametrize("family", REFUSED)
def test_what_does_not_is_refused_in_a_sentence(tmp_path, monkeypatch, family):
    with pytest.raises(UserError, match=REFUSED[family]):
        checked(loaded(family, tmp_path, monkeypatch), rows())


@pytest.mark.slow
@pytest.mark.parametrize("family", families.EVERY)
def test_every_family_of_transformers_trains_plainly_or_is_refused(tmp_path, monkeypatch, family):
    try:
        families.model(family)
    except Exception as error:  # the family's own, of a small config
        pytest.skip(f"no tiny model: {error}")
    try:
        model = loaded(family, tmp_path, monkeypatch)
        packed = checked(model, rows())
    except UserError:
        return
    check_gradients(model, packed)


@pytest.mark.parametrize(
    "change",
    [lambda x: x * 0.5, lambda x: 30 * torch.tanh(x / 30), lambda x: x + 1],
    ids=["scaled", "capped", "shifted"],
)
def test_logits_changed_after_the_head_are_seen_whatever_the_key_is_called(tiny_models, monkeypatch, change):
    model = load_base(Base(tiny_models["llama"]), torch.float32)
    plain = model.forward

    def forward(*arguments, **named):
        result = plain(*arguments, **named)
        result.logits = change(result.logits)
        return result

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(UserError, match="change their logits after the head"):
        checked(model, [[5, 6, 7], [8, 9]])


def test_a_window_that_no_argument_tells_of_is_seen(tiny_models, monkeypatch):
    """Later tokens alone differ, and the last ones are looked at."""
    monkeypatch.setattr(check_model, "compute_dtype", lambda: torch.float32)
    model = load_base(Base(tiny_models["llama"]), torch.float32)
    own = check_model._own

    def windowed(model, ids):
        return torch.cat([own(model, ids)[:-8], own(model, ids[-8:])])

    monkeypatch.setattr(check_model, "_own", windowed)
    with pytest.raises(UserError, match=r"on 200 tokens .* lower data.max_length"):
        checked(model, [list(range(1, 201)), [3, 4, 5]])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_model_with_a_state_trains_one_sequence_at_a_time_through_the_stage(
    workspace, tiny_models, tmp_path_factory, capsys, method
):
    folder = families.with_tokenizer("lfm2", tmp_path_factory.mktemp("lfm2"), tiny_models["llama"])
    write_params(workspace)
    stage("prepare", "--model_name", folder)
    stage("train", "--model_name", folder, "--method", method)
    assert "packing is off" in capsys.readouterr().out
    stage("eval")


@pytest.mark.parametrize("command", [["train", "--method", "lora"], ["eval", "--base"]])
def test_both_stages_that_compute_a_loss_refuse(workspace, tiny_models, tmp_path_factory, command):
    folder = families.with_tokenizer("cohere", tmp_path_factory.mktemp("cohere"), tiny_models["llama"])
    stage("prepare", "--model_name", folder)
    assert "cohere models change their logits" in refusal(*command, "--model_name", folder)


def test_tokens_that_the_model_has_no_embedding_for_are_refused(workspace, tiny_models, tmp_path_factory):
    folder = families.with_tokenizer("llama", tmp_path_factory.mktemp("short"), tiny_models["llama"], vocab_size=100)
    stage("prepare", "--model_name", folder)
    for command in (["train", "--method", "lora"], ["eval", "--base"]):
        assert "has embeddings for 0 to 99 only" in refusal(*command, "--model_name", folder)
