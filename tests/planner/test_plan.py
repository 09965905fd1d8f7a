"""`finetune plan` says what training holds, what fits, and what to lower."""

import pytest
import torch
from helpers import base_for, stage, write_params

from finetune import params, places, yaml_file
from finetune.commands import plan as command
from finetune.costs.memory_parts import Activations, memory_parts
from finetune.errors import UserError
from finetune.kernels.adamw import SplitAdamW
from finetune.kernels.loss import response_loss
from finetune.kernels.packing import longest_micro_batch, micro_batches, pack
from finetune.methods import METHODS
from finetune.models.adapters import trainable
from finetune.models.base import Base
from finetune.models.check_model import in_training_precision
from finetune.planner import devices, plan
from finetune.planner.memory import model_sizes, parts_at_peak
from finetune.planner.records import TrainingRecords, largest_micro_batch, micro_batch, planned_records

LENGTHS = (64, 64, 64, 64)


def planned(base, p, device=None):
    return model_sizes(Base(base).config, METHODS[p.method], p, device or devices.here())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_parts_are_those_that_a_step_holds(workspace, tiny_models, family, method, checkpointing):
    write_params(workspace, method=method, train={"gradient_checkpointing": checkpointing})
    p, base = params.load(), base_for(tiny_models, family, method)
    model = trainable(Base(base), METHODS[method], p.lora, longest_micro_batch(LENGTHS, 4, 1024)).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    rows = [{"input_ids": list(range(length)), "labels": list(range(length))} for length in LENGTHS]
    (batch,) = micro_batches(pack(rows), 1024)
    seen = Activations(model)
    with seen.watch(256), in_training_precision(model):
        loss = response_loss(model, batch)
    loss.backward()
    optimizer = SplitAdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3)
    optimizer.step()
    found = memory_parts(model, optimizer, seen)

    sizes = planned(base, p)
    at = largest_micro_batch(TrainingRecords(LENGTHS, 1.0, known=True), p.train)
    told = parts_at_peak(sizes, p.train, at)
    for name in ("weights", "adapters", "gradients", "optimizer"):
        # Biases of buffers, and constants' tables, aren't counted: a few KB.
        assert getattr(told, name) == pytest.approx(getattr(found, name) * 1e9, rel=0.01, abs=20_000), name
    head = sizes.head.nbytes if method == "full" else 0
    # Beside it there are the loss's gradients, of the head's weight too if it is trained.
    loss_rows = 256 * 64 * sizes.item
    loss = loss_rows + head
    assert told.activations == pytest.approx(found.activations * 1e9 - loss, rel=0.1, abs=2.5 * loss_rows)


def test_what_is_largest_fits_and_no_more(workspace, tiny_models):
    p, base = params.load(), tiny_models["llama"]
    card = devices.named("1.55GB")
    sizes = planned(base, p, card)
    records = TrainingRecords((200,) * 40, 0.5, known=True)
    found = {one.method.name: one for one in plan.plan(Base(base).config, p, records, card, timed=False)}[p.method]
    assert 0 < found.tokens < plan.MOST_TOKENS and found.max_length == 512, "the model has no more positions"

    def total(tokens):
        return parts_at_peak(sizes, p.train, micro_batch(records, p.train, tokens, 200)).total

    assert card.fits(total(found.tokens)) and not card.fits(total(found.tokens + 64))


def test_the_command_prints_each_method_and_draws_it(workspace, tiny_models, capsys):
    command.main(["--model", str(tiny_models["llama"]), "--device", "rtx 3060", "--plot", "plan.png"])
    shown = capsys.readouterr().out
    rows = {line[:40].strip(): line[40:].split() for line in shown.splitlines()}
    assert "RTX 3060: 12.885 GB" in shown and "no data is prepared" in shown
    assert "Time is estimated for the machine at hand only" in shown and "minutes per epoch" not in rows
    assert rows["GB (10^9 bytes)"] == list(METHODS) and rows["fits"] == ["yes"] * len(METHODS)
    assert (workspace / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_before_a_model_is_fetched_the_catalogue_tells_its_shape(workspace, capsys):
    command.main(["--device", "8GB"])
    assert "smollm2-135m on a GPU of 8 GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "card", "mib"),
    [
        ("RTX 3060", "RTX 3060", 12288),
        ("NVIDIA GeForce RTX 3060", "RTX 3060", 12288),
        ("rtx-3060", "RTX 3060", 12288),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB", 81920),
        ("A100", "A100 40GB", 40960),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB", 40960),
        ("Tesla T4", "T4", 15360),
        ("Tesla V100-SXM2-32GB", "V100 32GB", 32768),
        ("NVIDIA H100 80GB HBM3", "H100", 81559),
        ("4090", "RTX 4090", 24564),
        ("RTX 4090 24GB", "RTX 4090", 24564),
        ("NVIDIA A10", "A10", 23028),
        ("24576MiB", "a GPU of 25.7698 GB", 24576),
    ],
)
def test_a_card_is_found_by_what_drivers_and_people_call_it(name, card, mib):
    found = devices.named(name)
    assert (found.name, found.memory) == (card, mib * 2**20)


@pytest.mark.parametrize("name", devices.CARDS)
def test_a_plan_leaves_room_for_driver_and_context_on_every_card(name):
    assert devices.named(name).room < min(devices.CARDS[name]) * 2**20 - 10**9


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--device", "RTX 9"],
            "--device: 'RTX 9' .*8GB.*nearest is RTX [345]090.*RTX 3060.*H200",
        ),
        (["--device", "0GB"], "--device: '0GB' is neither"),
        (["--device", "A1000"], "nearest is A100"),
        (["--device", "RTX 4090 48GB"], "RTX 4090 comes with 24GB"),
        (["--model", "nowhere"], "--model: nowhere is no folder with a config.json"),
    ],
)
def test_what_cant_be_planned_is_said(workspace, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        command.main(arguments)


def test_a_hub_id_that_isnt_here_is_to_be_fetched(workspace):
    write_params(workspace, model={"source": "owner/name"})
    with pytest.raises(UserError, match=r"model.source: owner/name isn't here yet; run `dvc repro fetch@model`"):
        command.main(["--device", "8GB"])


def test_train_prints_its_plan_and_warns_where_it_wont_fit(workspace, tiny_models, capsys, monkeypatch):
    stage("prepare", "--model_name", tiny_models["llama"])
    # So much that a shorter micro-batch fits, and the one that is set doesn't.
    write_params(workspace, method="lora", train={"tokens_per_micro_batch": 1024, "batch_size": 16})
    p, base = params.load(), tiny_models["llama"]
    at = largest_micro_batch(planned_records(p, places.PREPARED), p.train)
    room = parts_at_peak(planned(base, p), p.train, at).total - 500_000
    monkeypatch.setattr(devices, "_free", lambda: room)
    stage("train", "--model_name", base)
    said = capsys.readouterr()
    assert "plan: lora takes" in said.out
    assert "warning: that won't fit: set train.tokens_per_micro_batch to" in said.err


def test_shards_divide_what_a_process_holds(workspace, tiny_models):
    p = params.load()
    at = largest_micro_batch(TrainingRecords(LENGTHS, 1.0, known=True), p.train)
    whole = parts_at_peak(planned(tiny_models["llama"], p), p.train, at)
    shard = whole.per_rank(params.Launch(processes=4, shard=True))
    assert shard.weights == -(-whole.weights // 4) and shard.activations == whole.activations
    assert whole.per_rank(params.Launch(processes=4, shard=False)) == whole


def test_fp16_cards_train_whole_models_in_fp32(workspace, tiny_models):
    write_params(workspace, method="full")
    p = params.load()
    assert planned(tiny_models["llama"], p, devices.named("T4")).item == torch.float32.itemsize
    assert yaml_file.read(workspace / "params.yaml")["method"] == "full"
