"""A stage in several processes comes to what it comes to in one, and none of them is left behind when one dies."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from helpers import ROOT, base_for, command, files_in, free_port, refusal, stage, write_params

from finetune import yaml_file
from finetune.methods import METHODS

SETTINGS = {name: {"learning_rate": 0.002 if name == "full" else 0.01, "epochs": 2} for name in METHODS}
"""At 0.01 full fine-tuning leaps about, and rounding alone would part two runs."""
TOLERANCE = 0.02
"""Nats between the curves of one process and of several, which add bf16 gradients up in another order."""


@pytest.fixture
def ready(workspace, tiny_models, monkeypatch):
    """A prepared workspace; `run(method, processes, shard)` trains as a user does."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("FINETUNE_SNAPSHOT_SECONDS", "0")

    class Ready:
        folder = workspace

        def configure(self, processes: int = 1, shard: bool = False, **changes) -> None:
            write_params(
                workspace,
                methods=SETTINGS,
                train={"validations": 2},
                launch={"processes": processes, "shard": shard},
                **changes,
            )

        def arguments(self, method: str) -> list[str]:
            return ["--method", method, "--model_name", str(base_for(tiny_models, "llama", method))]

        def command(self, method: str) -> list[str]:
            return [sys.executable, str(ROOT / "stages/train.py"), *self.arguments(method)]

        def run(self, method: str, processes: int, shard: bool = False) -> dict[int, float]:
            self.configure(processes, shard)
            done = command(*self.command(method), cwd=workspace)
            assert done.returncode == 0, done.stderr
            return self.curve()

        def alone(self, method: str) -> dict[int, float]:
            self.configure()
            stage("train", *self.arguments(method))
            return self.curve()

        def curve(self) -> dict[int, float]:
            """Loss by optimizer step, of the run just made."""
            lines = (workspace / "plots/live/plots/metrics/train/loss.tsv").read_text().splitlines()[1:]
            return {int(step): float(loss) for step, loss in (line.split("\t") for line in lines)}

        def facts(self) -> dict:
            return json.loads((workspace / "metrics/train.facts.json").read_text())

    prepared = Ready()
    prepared.configure()
    stage("prepare", "--model_name", tiny_models["llama"])
    return prepared


def is_near(curve: dict[int, float], other: dict[int, float]) -> bool:
    return curve.keys() == other.keys() and all(abs(curve[step] - other[step]) < TOLERANCE for step in curve)


def started(ready, method: str) -> subprocess.Popen:
    return subprocess.Popen(
        ready.command(method),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ready.folder,
        # What a shell starts in the background ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def read_until(running: subprocess.Popen, words: str) -> None:
    for line in running.stdout:
        if words in line:
            return
    pytest.fail(f"ended without a word of {words!r}: {running.stderr.read()}")


def process_of(running: subprocess.Popen, rank: int) -> psutil.Process:
    workers = psutil.Process(running.pid).children()
    return next(worker for worker in workers if worker.environ().get("RANK") == str(rank))


def none_left(running: subprocess.Popen, workers: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(workers, timeout=10)[1]


def test_one_that_dies_ends_all_with_a_sentence_and_another_number_goes_on(ready, capsys):
    """QLoRA, whose four bits lie in shards; and a curve as if nothing had been."""
    alone = ready.alone("qlora")
    ready.configure(2, True)
    running = started(ready, "qlora")
    read_until(running, "step 5 of 16")
    workers = psutil.Process(running.pid).children()
    process_of(running, 1).kill()
    said = running.communicate()[1]
    assert running.returncode == 1
    expected = (
        r"error: process 1 of 2 was ended by SIGKILL; the last snapshot is kept; rerun the same command to resume"
    )
    assert re.fullmatch(expected, said.strip()), said
    assert none_left(running, workers)

    capsys.readouterr()
    ready.configure(1)
    stage("train", *ready.arguments("qlora"))
    step = int(re.search(r"resuming after step (\d+) of 16", capsys.readouterr().out)[1])
    assert 4 <= step < 16
    assert is_near(ready.curve(), alone)
    assert "peak_device_gb_by_process" not in ready.facts()


def test_evaluation_shares_the_answers_and_none_differs(ready, trained, tiny_models):
    arguments = ["--ckpt", trained / "models/tuned", "--model_name", tiny_models["llama-4bit"]]
    ready.configure(eval={"decode_batch_size": 2})
    stage("eval", *arguments, "--out_dir", "alone")
    ready.configure(2, eval={"decode_batch_size": 2})
    done = command(sys.executable, ROOT / "stages/eval.py", *arguments, "--out_dir", "shared", cwd=ready.folder)
    assert done.returncode == 0, done.stderr
    assert files_in(ready.folder / "alone") == files_in(ready.folder / "shared")
    assert not (ready.folder / "models/.snapshots").exists()


def test_machines_that_nobody_can_find_are_refused(ready, monkeypatch):
    ready.configure(2)
    monkeypatch.setenv("NNODES", "2")
    assert "set MASTER_ADDR and MASTER_PORT" in refusal("train", *ready.arguments("lora"))


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["whole", "in shards"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("processes", [2, 4])
def test_the_curve_is_that_of_one_process(ready, method, processes, shard):
    alone = ready.alone(method)
    kept = json.loads((ready.folder / "metrics/train.json").read_text())["validation_loss"]
    assert is_near(ready.run(method, processes, shard), alone)
    metrics = json.loads((ready.folder / "metrics/train.json").read_text())
    assert abs(metrics["validation_loss"] - kept) < TOLERANCE
    peaks = ready.facts()["peak_device_gb_by_process"]
    assert len(peaks) == processes and metrics["peak_device_gb"] == max(peaks)
    # What is saved is whole, whoever held it.
    stage("eval", "--model_name", ready.arguments(method)[-1], "--out_dir", "scored")


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["whole", "in shards"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_at_the_same_step(ready, number, shard):
    alone = ready.alone("full")
    ready.configure(2, shard)
    running = started(ready, "full")
    read_until(running, "step 3 of 16")
    workers = psutil.Process(running.pid).children()
    running.send_signal(number)
    said = running.communicate()[1]
    assert running.returncode == 128 + number, said
    assert re.search(r"error: (terminated|interrupted); step \d+ of 16 is kept; rerun the same command to resume", said)
    assert none_left(running, workers)
    assert is_near(ready.run("full", 4, not shard), alone)


@pytest.mark.slow
def test_a_launcher_that_is_killed_leaves_no_process(ready):
    ready.configure(2)
    running = started(ready, "lora")
    read_until(running, "step 2 of 16")
    workers = psutil.Process(running.pid).children()
    running.kill()
    assert none_left(running, workers)


@pytest.mark.slow
def test_the_first_of_whole_models_writes_a_snapshot_when_another_dies(ready, monkeypatch):
    monkeypatch.setenv("FINETUNE_SNAPSHOT_SECONDS", "3600")
    alone = ready.alone("lora")
    ready.configure(2)
    running = started(ready, "lora")
    read_until(running, "step 6 of 16")
    process_of(running, 1).kill()
    said = running.communicate()[1]
    assert re.search(r"process 1 of 2 was ended by SIGKILL; step \d+ of 16 is kept", said), said
    assert is_near(ready.run("lora", 1), alone)


@pytest.mark.slow
def test_torchrun_starts_them_as_well(ready):
    alone = ready.alone("lora")
    ready.configure(1)
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    done = command(torchrun, "--nproc-per-node", 2, *ready.command("lora")[1:], cwd=ready.folder)
    assert done.returncode == 0, done.stderr
    assert len(ready.facts()["peak_device_gb_by_process"]) == 2
    assert is_near(ready.curve(), alone)


@pytest.mark.slow
def test_other_data_on_one_machine_is_refused(ready, monkeypatch):
    """Two machines by their environment, both of them this one."""
    ready.configure(1)
    there = ready.folder / "there"
    shutil.copytree(ready.folder, there, ignore=shutil.ignore_patterns("there"))
    params = yaml_file.read(there / "params.yaml")
    (there / "params.yaml").write_text(yaml_file.text(params | {"seed": 7}))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NNODES": "2"}
    runs = [
        subprocess.Popen(
            ready.command("lora"),
            cwd=folder,
            env=os.environ | shared | {"NODE_RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank, folder in enumerate((ready.folder, there))
    ]
    for run in runs:
        assert "process 1 has other settings" in run.communicate()[1]
        assert run.returncode == 1
