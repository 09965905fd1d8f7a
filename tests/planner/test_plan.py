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
from finetune.planner import devices, fits
from finetune.planner.parts import parts
from finetune.planner.passes import Records, largest, records
from finetune.planner.plan import sizes_of

LENGTHS = (64, 64, 64, 64)


def planned(base, p, device=None):
    return sizes_of(Base(base).config, METHODS[p.method], p, device or devices.here())


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
    at = largest(Records(LENGTHS, 1.0, known=True), p.train)
    told = parts(sizes, p.train, at)
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
    card = devices.named("0.65GB")
    sizes = planned(base, p, card)
    data = Records((200,) * 40, 0.5, known=True)
    found = fits.largest_that_fits(sizes, p.train, p.launch, data, card)
    assert 0 < found.tokens < fits.MOST_TOKENS and found.max_length == 512, "the model has no more positions"

    def total(tokens):
        return parts(sizes, p.train, fits.sized(data, p.train, tokens, 200)).total

    assert card.fits(total(found.tokens)) and not card.fits(total(found.tokens + 64))


def test_the_command_prints_each_method_and_draws_it(workspace, tiny_models, capsys):
    command.main(["--model", str(tiny_models["llama"]), "--device", "rtx 3060", "--plot", "plan.png"])
    shown = capsys.readouterr().out
    rows = {line[:40].strip(): line[40:].split() for line in shown.splitlines()}
    assert "RTX 3060: 12.885 GB" in shown and "no data is prepared" in shown and "isn't measured" in shown
    assert rows["GB (10^9 bytes)"] == list(METHODS) and rows["fits"] == ["yes"] * len(METHODS)
    assert (workspace / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_before_a_model_is_fetched_the_catalogue_tells_its_shape(workspace, capsys):
    command.main(["--device", "8GB"])
    assert "smollm2-135m on a GPU of 8 GB" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["RTX 3060", "NVIDIA GeForce RTX 3060", "rtx-3060", "rtx3060"])
def test_a_card_goes_by_what_it_is_called(name):
    assert devices.named(name).name == "RTX 3060"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--device", "RTX 9"],
            "--device: 'RTX 9' is neither an amount of memory, as in 8GB, nor a card .*RTX 3060.*H200",
        ),
        (["--device", "0GB"], "--device: '0GB' is neither"),
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
    data = records(p, places.PREPARED)
    room = parts(planned(base, p), p.train, largest(data, p.train)).total - 500_000
    monkeypatch.setattr(devices, "_free", lambda: room)
    stage("train", "--model_name", base)
    said = capsys.readouterr()
    assert "plan: lora takes" in said.out
    assert "warning: that won't fit: set train.tokens_per_micro_batch to" in said.err


def test_shards_divide_what_a_process_holds(workspace, tiny_models):
    p = params.load()
    whole = parts(planned(tiny_models["llama"], p), p.train, largest(Records(LENGTHS, 1.0, True), p.train))
    shard = whole.per_rank(params.Launch(processes=4, shard=True))
    assert shard.weights == -(-whole.weights // 4) and shard.activations == whole.activations
    assert whole.per_rank(params.Launch(processes=4, shard=False)) == whole


def test_fp16_cards_train_whole_models_in_fp32(workspace, tiny_models):
    write_params(workspace, method="full")
    p = params.load()
    assert planned(tiny_models["llama"], p, devices.named("T4")).item == torch.float32.itemsize
    assert yaml_file.read(workspace / "params.yaml")["method"] == "full"
