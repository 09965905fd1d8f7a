"""Training that is killed, by whatever and whenever, goes on to the same bytes."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import ROOT, Killed, assert_names, base_for, files_in, interrupt, refusal, signalled, stage, write_params

from finetune import dvc_files
from finetune.errors import UserError
from finetune.kernels import adamw
from finetune.methods import METHODS
from finetune.models import saved
from finetune.resume import store
from finetune.training import snapshots, trainer

SETTINGS = {name: {"learning_rate": 0.01, "epochs": 2} for name in METHODS}
KEPT = Path("models/.snapshots")


@pytest.fixture
def ready(workspace, tiny_models):
    """A prepared workspace; `run(method)` trains in this process, `outcome()` is what a run has come to."""

    class Ready:
        folder = workspace

        def prepare(self) -> None:
            stage("prepare", "--model_name", tiny_models["llama"])

        def arguments(self, method: str) -> list[str]:
            return ["--method", method, "--model_name", str(base_for(tiny_models, "llama", method))]

        def run(self, method: str) -> None:
            stage("train", *self.arguments(method))

        def command(self, method: str) -> list[str]:
            return [sys.executable, str(ROOT / "stages/train.py"), *self.arguments(method)]

        def outcome(self) -> dict:
            return outcome(workspace)

    write_params(workspace, methods=SETTINGS, lora={"dropout": 0.1}, train={"validations": 2})
    prepared = Ready()
    prepared.prepare()
    return prepared


TIMES = ("seconds", "per_second", "_gb", "rest")


def outcome(folder: Path) -> dict:
    """Model, curves and metrics, without what measures time and memory."""
    metrics = {}
    for name in ("train", "train.facts"):
        read = json.loads((folder / f"metrics/{name}.json").read_text())
        metrics |= {key: value for key, value in read.items() if not any(word in key for word in TIMES)}
    curves = {
        name: data
        for name, data in files_in(folder / "plots/live/plots").items()
        if "memory" not in name and "seconds" not in name
    }
    return {"model": files_in(folder / "models/tuned"), "metrics": metrics, "curves": curves}


def different(one: dict, other: dict) -> dict:
    return {k: (v, other[p].get(k)) for p, files in one.items() for k, v in files.items() if v != other[p].get(k)}


@pytest.fixture
def every_step(monkeypatch):
    monkeypatch.setenv("FINETUNE_SNAPSHOT_SECONDS", "0")


def went_on_after(capsys) -> int | None:
    """The step, by what is printed."""
    found = re.search(r"resuming after step (\d+) of", capsys.readouterr().out)
    return int(found[1]) if found else None


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_with_the_bytes_of_one_that_never_was(ready, every_step, monkeypatch, capsys, method):
    with monkeypatch.context() as patched:
        updates = interrupt(patched, 0, adamw.SplitAdamW, "_update")
        ready.run(method)
    expected = ready.outcome()
    went_on_after(capsys)
    for after, place, name, before in (
        (len(updates) * 2 // 16 + 3, adamw.SplitAdamW, "_update", None),  # in the third optimizer step
        (6, snapshots.Snapshots, "on_step_end", 2),  # at the end of the eighth, the last of an epoch
        (2, store, "_flush", 7),  # while the snapshot of the eighth is written
        (1, trainer, "shared_losses", 7),  # before the validation after the eighth
        (5, snapshots.Snapshots, "on_step_end", 7),  # in the second epoch
        (2, saved, "_write_without_weights", 11),  # while the model is saved
    ):
        with monkeypatch.context() as patched:
            interrupt(patched, after, place, name)
            with pytest.raises(Killed):
                ready.run(method)
        assert went_on_after(capsys) == before
    ready.run(method)
    assert went_on_after(capsys) == 16
    assert ready.outcome() == expected, different(ready.outcome(), expected)
    assert not KEPT.exists()


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_to_a_real_process_loses_nothing(ready, number):
    """SIGTERM and Ctrl-C write a snapshot of their own first; SIGKILL leaves the last one."""
    ready.run("qlora")
    expected = ready.outcome()
    between = "0" if number == signal.SIGKILL else "1000"
    said = signalled(ready.command("qlora"), number, after="step 3 of 16", FINETUNE_SNAPSHOT_SECONDS=between)
    if number != signal.SIGKILL:
        word = "terminated" if number == signal.SIGTERM else "interrupted"
        assert re.search(rf"^error: {word}; step \d+ of 16 is kept; rerun the same command to resume$", said, re.M)
    assert len(list(KEPT.glob("train-*/step-*/weights.safetensors"))) == 1
    again = subprocess.run(ready.command("qlora"), capture_output=True, text=True)
    assert re.search(r"resuming after step \d+ of 16", again.stdout), again.stderr
    assert ready.outcome() == expected


def test_a_run_into_a_folder_of_its_own_goes_on(ready, every_step, monkeypatch, capsys):
    arguments = [*ready.arguments("lora"), "--out_dir", "own"]
    with monkeypatch.context() as patched, pytest.raises(Killed):
        interrupt(patched, 5, snapshots.Snapshots, "on_step_end")
        stage("train", *arguments)
    assert (ready.folder / "own/plots").exists()
    stage("train", *arguments)
    assert went_on_after(capsys) == 4


def test_running_out_of_memory_keeps_the_steps_made(ready, every_step, monkeypatch, capsys):
    ready.run("lora")
    expected = ready.outcome()
    with monkeypatch.context() as patched:
        interrupt(patched, 6, trainer, "response_loss", MemoryError())
        assert_names(refusal("train", *ready.arguments("lora")), "memory … train.tokens_per_micro_batch")
    went_on_after(capsys)
    ready.run("lora")
    assert went_on_after(capsys) in (4, 5) and ready.outcome() == expected


def test_time_adds_up_over_an_interruption(ready, every_step, monkeypatch):
    killed_at(ready, monkeypatch, 9)
    ready.run("lora")
    for table in ("live/plots/metrics/train/seconds.tsv", "memory.tsv"):
        rows = (ready.folder / "plots" / table).read_text().splitlines()
        column = [float(row.split("\t")[rows[0].split("\t").index("seconds")]) for row in rows[1:]]
        assert column == sorted(column) and column[0] >= 0
        assert len(column) >= (16 if "train" in table else 1)


def killed_at(ready, monkeypatch, step: int, method: str = "lora") -> None:
    with monkeypatch.context() as patched:
        interrupt(patched, step, snapshots.Snapshots, "on_step_end")
        with pytest.raises(Killed):
            ready.run(method)


def test_another_run_never_takes_up_a_snapshot(ready, every_step, monkeypatch, capsys, words):
    killed_at(ready, monkeypatch, 3)
    went_on_after(capsys)
    ready.run("qlora")
    assert went_on_after(capsys) is None
    killed_at(ready, monkeypatch, 3, "lora")
    assert went_on_after(capsys) == 2
    write_params(ready.folder, methods=SETTINGS, seed=7)
    ready.run("lora")
    assert went_on_after(capsys) is None
    (ready.folder / "data/raw/words.json").write_text(json.dumps(words[1:]))
    write_params(ready.folder, methods=SETTINGS, lora={"dropout": 0.1}, train={"validations": 2})
    ready.prepare()
    ready.run("lora")
    assert went_on_after(capsys) is None


def test_of_interrupted_runs_the_latest_are_kept(ready, every_step, monkeypatch):
    for seed in range(6):
        write_params(ready.folder, methods=SETTINGS, seed=seed)
        killed_at(ready, monkeypatch, 2)
    runs = [path for path in KEPT.iterdir() if path.is_dir()]
    assert len(runs) == 1 + store.MOST_RUNS
    assert all(len(list(run.glob("step-*"))) == 1 for run in runs)


def test_a_damaged_snapshot_is_skipped(ready, every_step, monkeypatch, capsys):
    ready.run("lora")
    expected = ready.outcome()
    killed_at(ready, monkeypatch, 4)
    (run,) = KEPT.glob("train-*/")
    older = run / "step-2"
    (run / "step-3").rename(older)
    killed_at(ready, monkeypatch, 4)
    # As a machine that fails leaves it: the older one is there still, the newer one isn't whole.
    newer = next(path for path in run.glob("step-*") if path != older)
    for name, damage in (("weights.safetensors", b""), ("optimizer.safetensors", b"\0" * 100)):
        (newer / name).write_bytes(damage)
    went_on_after(capsys)
    ready.run("lora")
    assert ready.outcome() == expected


def test_two_processes_dont_train_the_same_at_once(ready, every_step, monkeypatch):
    killed_at(ready, monkeypatch, 3)
    (run,) = (path for path in KEPT.glob("train-*") if path.is_dir())
    with store._locked(run):
        message = refusal("train", *ready.arguments("lora"))
    assert f"process {os.getpid()} is running the same stage; wait for it, or stop it" in message


def test_a_full_disk_costs_a_snapshot_and_not_the_run(ready, every_step, monkeypatch, capsys):
    @contextmanager
    def full(run, step):
        raise UserError("the disk is full")
        yield

    write_params(ready.folder, methods=SETTINGS, train={"keep": "last"})
    monkeypatch.setattr(store, "new_snapshot", full)
    ready.run("lora")
    assert "no snapshot after step 3: the disk is full" in capsys.readouterr().err
    # The best weights so far are nowhere else.
    write_params(ready.folder, methods=SETTINGS, train={"keep": "best"})
    assert "the disk is full" in refusal("train", *ready.arguments("lora"))


def test_what_dvc_has_not_recorded_yet_is_there_still(ready, monkeypatch, capsys):
    """DVC may be killed after the stage has ended; it then removes the outputs and runs it again."""
    monkeypatch.setenv("DVC_STAGE", "train")
    ready.run("lora")
    first = ready.outcome()
    went_on_after(capsys)
    ready.run("lora")
    assert went_on_after(capsys) == 16
    assert ready.outcome() == first
    metrics = dvc_files.hash_of(ready.folder / "metrics/train.json")
    (ready.folder / "dvc.lock").write_text(f"outs: [{{path: metrics/train.json, md5: {metrics}}}]")
    ready.run("lora")
    assert went_on_after(capsys) is None


def overfits(ready, **train) -> dict:
    """A run whose validation loss rises again, since there is no sense in what it learns; its model, its metrics, and
    validation losses by step."""
    draw = random.Random(0)
    records = [{"instruction": f"Say {n}.", "output": "".join(draw.choices("abcdefgh ", k=40))} for n in range(40)]
    (ready.folder / "data/raw/words.json").write_text(json.dumps(records))
    steady = {"scheduler": "constant_with_warmup", "warmup": 0.0, "validations": 2} | train
    epochs = steady.pop("epochs", 4)
    write_params(ready.folder, methods={"full": {"learning_rate": 0.02, "epochs": epochs}}, train=steady)
    ready.prepare()
    ready.run("full")
    found = outcome(ready.folder)
    table = (ready.folder / "plots/live/plots/metrics/validation/loss.tsv").read_text().splitlines()[1:]
    losses = {int(step): float(loss) for step, loss in map(str.split, table)}
    return found | {"losses": losses}


def test_the_best_weights_are_kept_or_the_last(ready):
    last, best = overfits(ready, keep="last"), overfits(ready, keep="best")
    assert best["losses"] == last["losses"] and list(best["losses"]) == [4, 8, 12, 16, 20, 24, 28, 32]
    least = min(best["losses"], key=best["losses"].get)
    assert least < 32 == last["metrics"]["kept_step"], "the run is to overfit"
    assert best["metrics"]["kept_step"] == least and last["metrics"]["steps"] == best["metrics"]["steps"] == 32
    assert best["metrics"]["validation_loss"] == pytest.approx(best["losses"][least], abs=1e-4)
    assert last["metrics"]["validation_loss"] == pytest.approx(last["losses"][32], abs=1e-4)
    shorter = overfits(ready, keep="last", epochs=least / 8)
    assert best["model"]["model.safetensors"] == shorter["model"]["model.safetensors"]
    assert best["model"]["model.safetensors"] != last["model"]["model.safetensors"]


def test_patience_ends_a_run(ready):
    whole, short = overfits(ready), overfits(ready, patience=2)
    least = whole["metrics"]["kept_step"]
    assert short["metrics"]["steps"] == least + 8
    assert short["model"]["model.safetensors"] == whole["model"]["model.safetensors"]


def test_the_best_weights_outlive_a_kill(ready, every_step, monkeypatch):
    expected = overfits(ready, patience=2)
    least = expected["metrics"]["kept_step"]
    with monkeypatch.context() as patched:
        interrupt(patched, least + 6, snapshots.Snapshots, "on_step_end")
        with pytest.raises(Killed):
            ready.run("full")
    assert overfits(ready, patience=2) == expected
