"""Two machines, made of network namespaces, of which neither sees the other's files."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, base_for, stage, write_params

from finetune.methods import METHODS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"),
        reason="network namespaces take root, and the commands ip (Debian: iproute2) and unshare",
    ),
]

ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Names of two namespaces with a cable between them."""
    names = [f"finetune-{os.getpid()}-{number}" for number in range(2)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "name", "cable1", "netns", names[1])
        for number, name in enumerate(names):
            ip("-n", name, "addr", "add", f"{ADDRESSES[number]}/24", "dev", f"cable{number}")
            ip("-n", name, "link", "set", f"cable{number}", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


@pytest.fixture
def folders(tmp_path, words, tiny_models, monkeypatch) -> list[Path]:
    """The same prepared workspace on both."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("FINETUNE_SNAPSHOT_SECONDS", "0")
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "data/raw").mkdir(parents=True)
    (first / "data/raw/words.json").write_text(json.dumps(words))
    monkeypatch.chdir(first)
    configure(first)
    stage("prepare", "--model_name", tiny_models["llama"])
    shutil.copytree(first, second)
    return [first, second]


def configure(folder: Path, **launch) -> None:
    settings = {name: {"learning_rate": 0.01, "epochs": 2} for name in METHODS}
    write_params(folder, methods=settings, train={"validations": 2}, launch=launch)


def start(hosts, folders, method: str, base: Path) -> list[subprocess.Popen]:
    """The command on each machine, where the other's folder is empty."""
    runs = []
    for rank, (host, folder) in enumerate(zip(hosts, folders, strict=True)):
        shared = {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29511", "NNODES": "2", "NODE_RANK": str(rank)}
        train = f"exec {sys.executable} {ROOT}/stages/train.py --method {method} --model_name {base}"
        apart = f"mount -t tmpfs none {folders[1 - rank]} && cd {folder} && {train}"
        runs.append(
            subprocess.Popen(
                ["ip", "netns", "exec", host, "unshare", "--mount", "sh", "-c", apart],
                env=os.environ | shared,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return runs


def curve(folder: Path) -> list[float]:
    lines = (folder / "plots/live/plots/metrics/train/loss.tsv").read_text().splitlines()[1:]
    return [float(line.split("\t")[1]) for line in lines]


@pytest.mark.parametrize(("processes", "shard"), [(1, False), (2, True)])
def test_two_machines_train_as_one(hosts, folders, tiny_models, processes, shard):
    first, second = folders
    base = base_for(tiny_models, "llama", "qlora")
    stage("train", "--method", "qlora", "--model_name", base, "--out_dir", "alone")
    for folder in folders:
        configure(folder, processes=processes, shard=shard)
    for run in start(hosts, folders, "qlora", base):
        said = run.communicate()[1]
        assert run.returncode == 0, said
    assert curve(first) == pytest.approx(curve(first / "alone"), abs=0.02)
    facts = json.loads((first / "metrics/train.facts.json").read_text())
    assert len(facts["peak_device_gb_by_process"]) == 2 * processes
    assert not (second / "metrics/train.json").exists()


def test_a_machine_that_dies_ends_the_other_and_both_go_on_from_the_first_ones_snapshot(hosts, folders, tiny_models):
    first, _ = folders
    base = base_for(tiny_models, "llama", "full")
    stage("train", "--method", "full", "--model_name", base, "--out_dir", "alone")
    runs = start(hosts, folders, "full", base)
    for line in runs[0].stdout:
        if "step 6 of 16" in line:
            break
    runs[1].send_signal(signal.SIGKILL)
    said = runs[0].communicate()[1]
    assert runs[0].returncode == 1
    assert re.search(r"error: another process of this run has ended; step \d+ of 16 is kept", said), said
    runs[1].communicate()
    runs = start(hosts, folders, "full", base)
    printed, said = runs[0].communicate()
    assert runs[0].returncode == 0, said
    assert "resuming after step" in printed
    runs[1].communicate()
    assert curve(first) == pytest.approx(curve(first / "alone"), abs=0.02)
