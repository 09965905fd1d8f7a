"""Every method on both families, through stages/train.py and stages/eval.py."""

import json

import pytest
import torch
from helpers import FAST, base_for, drafts_in, files_in, refusal, stage, write_params
from safetensors.torch import load_file

from finetune import params
from finetune.device import compute_dtype, device
from finetune.kernels import loss
from finetune.kernels.packing import micro_batches, pack
from finetune.methods import METHODS
from finetune.models.adapters import trainable
from finetune.models.base import Base
from finetune.models.checkpoint import Checkpoint
from finetune.models.loading import load_base, parameter_counts


@pytest.fixture
def train(workspace, tiny_models):
    """Prepare for a family and train on it; return what is known of the run, metrics and facts."""

    def run(family: str, method: str, *arguments, **changes) -> dict:
        write_params(workspace, methods=FAST, **changes)
        stage("prepare", "--model_name", tiny_models[family])
        stage("train", "--model_name", base_for(tiny_models, family, method), "--method", method, *arguments)
        names = ("train", "train.facts")
        found = [json.loads((workspace / f"metrics/{name}.json").read_text()) for name in names]
        return found[0] | found[1]

    return run


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_method_learns_and_is_scored_better_than_the_base(workspace, train, tiny_models, family, method):
    metrics = train(family, method)
    assert max(metrics["train_loss"], metrics["validation_loss"]) < 5.5  # ln(384) = 5.95 for a random model
    whole = parameter_counts(load_base(Base(tiny_models[family]), torch.float32))[1]
    share = metrics["trained_parameters"] / whole
    assert 0 < share < 1 if METHODS[method].adapters else share == 1
    for figure in ("peak_process_gb", "tokens_per_second", "epoch_seconds"):
        assert metrics[figure] > 0

    stage("eval", "--base", "--model_name", tiny_models[family])
    stage("eval")
    base, tuned = (json.loads((workspace / f"metrics/{name}.json").read_text()) for name in ("base", "eval"))
    assert tuned["test_loss"] < base["test_loss"] - 0.5


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_qlora_holds_nf4_weights_and_adapts_every_linear_layer_but_the_head(tiny_models, family):
    from bitsandbytes.nn import Linear4bit

    p = params.load()
    model = trainable(Base(tiny_models[f"{family}-4bit"]), METHODS["qlora"], p.lora)
    quantised = [name for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    expected = {"llama": 7, "gpt2": 4}[family] * 2
    assert len(quantised) == expected
    states = [module.weight.quant_state for module in model.modules() if isinstance(module, Linear4bit)]
    assert all(state.quant_type == "nf4" and state.nested for state in states)
    adapters = {name.rsplit(".lora_A", 1)[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    assert len(adapters) == expected and not any("lm_head" in name for name in adapters)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.adapters])
def test_a_validation_leaves_the_next_gradients_as_they_were(tiny_models, method):
    p = params.load()
    model = trainable(Base(base_for(tiny_models, "llama", method)), METHODS[method], p.lora)
    ids = list(range(1, 33))
    rows = [{"input_ids": ids[:20], "labels": ids[:20]}, {"input_ids": ids[20:], "labels": ids[20:]}]

    def gradients() -> list[torch.Tensor]:
        model.train().zero_grad()
        loss.response_loss(model, next(micro_batches(pack(rows), 1000))).backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]

    before = gradients()
    loss.sequence_losses(model, rows)
    after = gradients()
    assert any(gradient.abs().sum() > 0 for gradient in before)
    for first, second in zip(before, after, strict=True):
        torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_four_bit_weights_count_as_the_weights_they_hold(tiny_models):
    p = params.load()
    whole = parameter_counts(load_base(Base(tiny_models["llama"]), torch.float32))[1]
    trained, total = parameter_counts(trainable(Base(tiny_models["llama-4bit"]), METHODS["qlora"], p.lora))
    assert total - trained == whole


def test_an_adapter_holds_only_what_was_trained(workspace, train):
    train("llama", "lora")
    names = set(load_file(workspace / "models/tuned/adapter_model.safetensors"))
    assert names and all("lora_" in name for name in names)


def test_out_dir_takes_everything_and_eval_and_infer_read_it(workspace, tiny_models, capsys):
    write_params(workspace, methods=FAST)
    base = tiny_models["llama"]
    stage("prepare", "--model_name", base, "--out_dir", "mine/data")
    stage("train", "--model_name", base, "--dataset", "mine/data", "--method", "full", "--out_dir", "mine/full")
    assert (workspace / "mine/full/model.safetensors").exists()
    assert (workspace / "mine/full/metrics/train.json").exists()
    assert (workspace / "mine/full/plots/live/plots/metrics/train/loss.tsv").exists()
    stage("eval", "--ckpt", "mine/full", "--dataset", "mine/data", "--out_dir", "mine/scores")
    assert (workspace / "mine/scores/metrics/eval.json").exists()
    assert not (workspace / "models").exists() and not (workspace / "metrics").exists()
    capsys.readouterr()
    stage("infer", "--ckpt", "mine/full", "--prompt", "Name the moon.")
    assert capsys.readouterr().out.strip()


def test_curves_and_memory_are_written_as_tables(workspace, train):
    train("llama", "qlora")
    live = workspace / "plots/live/plots/metrics"
    for name in ("train/loss", "train/learning_rate", "validation/loss", "memory/device_gb"):
        header, *rows = (live / f"{name}.tsv").read_text().splitlines()
        assert header.split("\t") == ["step", name.split("/")[1]] and rows
    assert len((live / "validation/loss.tsv").read_text().splitlines()) == 1 + FAST["qlora"]["epochs"]
    assert (workspace / "plots/memory.tsv").read_text().startswith("seconds\tprocess_gb\tdevice_gb\n")


@pytest.mark.parametrize("method", METHODS)
def test_same_params_same_bytes(workspace, train, method):
    runs = []
    for _ in range(2):
        metrics = train("llama", method)
        runs.append((files_in(workspace / "models/tuned"), metrics["train_loss"], metrics["validation_loss"]))
    assert runs[0] == runs[1]


def test_another_seed_gives_another_adapter_on_the_same_data(workspace, train):
    train("llama", "qlora")
    first = files_in(workspace / "models/tuned")["adapter_model.safetensors"]
    data = files_in(workspace / "data/prepared")
    train("llama", "qlora", seed=2)
    assert files_in(workspace / "models/tuned")["adapter_model.safetensors"] != first
    assert files_in(workspace / "data/prepared") == data


@pytest.mark.parametrize(
    "settings",
    [{"gradient_checkpointing": True}, {"tokens_per_micro_batch": 1}],
    ids=str,
)
def test_settings_that_save_memory_learn_the_same(train, settings):
    plain = train("llama", "qlora")
    saved = train("llama", "qlora", train=settings)
    assert saved["validation_loss"] == pytest.approx(plain["validation_loss"], abs=0.02)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_accumulated_batches_learn_as_one_large_batch_does(workspace, train, method):
    """The loss is a mean over all response tokens of an optimizer step, however many batches they came in."""
    answers = ["no", "yes " * 20, "red green", "one two three four five six " * 6, "up", "down"]
    records = [{"instruction": f"Number {n}", "input": "", "output": answer} for n, answer in enumerate(answers)]
    (workspace / "data/raw/words.json").write_text(json.dumps(records))
    steps = {}
    for batch, accumulated in ((4, 1), (1, 4)):
        train(
            "llama",
            method,
            data={"size": 6, "validation": 0.17, "test": 0.17},
            train={"batch_size": batch, "gradient_accumulation": accumulated},
        )
        table = (workspace / "plots/live/plots/metrics/train/gradient_norm.tsv").read_text().splitlines()
        steps[batch] = float(table[1].split()[1])
    # Means of means, each record counting the same, would be a tenth off.
    assert steps[1] == pytest.approx(steps[4], rel=0.03)


def test_the_model_card_names_licences_and_no_place_on_this_machine(workspace, train, tiny_models):
    train("llama", "qlora")
    checkpoint = Checkpoint.read(workspace / "models/tuned")
    assert checkpoint.method.name == "qlora" and checkpoint.base_folder == tiny_models["llama-4bit"]
    card = (workspace / "models/tuned/README.md").read_text()
    assert "licence" in card and "qlora" in card


def test_a_diverging_run_says_so_and_leaves_nothing(workspace, tiny_models, monkeypatch):

    from finetune.training import trainer

    monkeypatch.setattr(trainer, "response_loss", lambda model, batch: next(model.parameters()).sum() * float("nan"))
    write_params(workspace)
    stage("prepare", "--model_name", tiny_models["llama"])
    before = files_in(workspace)
    message = refusal("train", "--model_name", tiny_models["llama"], "--method", "full")
    assert "training diverged at step 1" in message and "lower methods.<method>.learning_rate" in message
    assert files_in(workspace) == before and not drafts_in(workspace)


def test_unknown_target_modules_and_methods_are_refused(workspace, tiny_models):
    write_params(workspace, lora={"target_modules": ["no_such_layer"]})
    stage("prepare", "--model_name", tiny_models["llama"])
    assert "lora.target_modules" in refusal("train", "--model_name", tiny_models["llama-4bit"])
    assert "method: must be one of qlora, lora, dora, full" in refusal("train", "--method", "magic")


def test_no_checkpoint_is_named(workspace):
    assert "models/tuned: no fine-tuned model there" in refusal("eval")


def test_the_precision_suits_the_device(monkeypatch):
    assert compute_dtype() in (torch.bfloat16, torch.float16, torch.float32)
    assert compute_dtype() != torch.float16 or device().type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        monkeypatch.setenv("FINETUNE_CPU_DTYPE", name)
        assert compute_dtype() == dtype
