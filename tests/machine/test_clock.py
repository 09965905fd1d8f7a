"""A clock that jumps, and files whose times say nothing."""

import itertools
import os
import time
from pathlib import Path

import pandas
import pytest
from helpers import FAST, dvc, stage, write_params

from finetune.files import read_json


@pytest.fixture
def jumping(monkeypatch):
    """The system's time goes back and forth by hours at each look; a clock that only counts can't be set."""
    real, jumps = time.time, itertools.cycle([0, 5 * 3600, -7 * 3600])
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))


def test_the_figures_of_a_run_in_which_the_clock_jumps(workspace, tiny_models, jumping):
    write_params(workspace, methods=FAST)
    stage("prepare", "--model_name", tiny_models["llama"])
    begun = time.monotonic()
    stage("train", "--model_name", tiny_models["llama"], "--method", "lora")
    lasted = time.monotonic() - begun
    figures = read_json(Path("metrics/train.json")) | read_json(Path("metrics/train.facts.json"))
    assert 0 < figures["train_seconds"] < lasted and 0 <= figures["epoch_seconds"] < lasted
    curves = Path("plots/live/plots/metrics/train")
    seconds, tokens = (pandas.read_csv(curves / f"{name}.tsv", sep="\t")[name] for name in ("seconds", "tokens"))
    assert seconds.is_monotonic_increasing and seconds.min() >= 0 and seconds.max() < lasted
    assert figures["tokens_per_second"] == pytest.approx(tokens.max() / figures["train_seconds"], rel=0.3)
    memory = pandas.read_csv("plots/memory.tsv", sep="\t")
    assert memory["seconds"].is_monotonic_increasing and memory["seconds"].max() < lasted


def status(folder: Path) -> str:
    done = dvc(folder, "status")
    assert done.returncode == 0, done.stderr
    return done.stdout


def set_times(folder: Path, seconds: int) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (seconds, seconds))


@pytest.mark.parametrize("seconds", [0, 2**32], ids=["1970", "2106"])
def test_times_of_files_make_no_stage_run_again(editable, seconds):
    for folder in ("data", "models", "metrics", "finetune", "stages"):
        set_times(editable / folder, seconds)
    assert "up to date" in status(editable)
    changed = editable / "data/raw/words.json"
    changed.write_bytes(changed.read_bytes().replace(b"moon", b"rain"))
    os.utime(changed, (seconds, seconds + 1))
    assert "data/raw" in status(editable)


def test_what_dvc_does_not_see(editable):
    """As docs/reproducing.md says: other bytes in the same file, of the same size, with its time put back."""
    path = editable / "data/raw/words.json"
    assert "up to date" in status(editable)
    before, content = path.stat(), path.read_bytes()
    try:
        _write_within(path, content.replace(b"moon", b"rain"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert "up to date" in status(editable)
    finally:  # what DVC doesn't see it doesn't bring back either
        _write_within(path, content)


def _write_within(path: Path, content: bytes) -> None:
    """Change the file's bytes in place, where it stays the same file."""
    with path.open("r+b") as file:
        file.write(content)
