"""A repository of a small pipeline that runs in a second, with a Git and a DVC remote which other clones reach."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import yaml
from helpers import GIT, ROOT, command, commit, dvc

from finetune.experiments import sweep
from finetune.methods import METHODS

PIPELINE = {
    "stages": {
        "data": {"cmd": "python work.py data", "outs": ["data/raw"]},
        "train": {
            "cmd": "python work.py train",
            "deps": ["work.py", "data/raw"],
            "params": ["method", "seed", "methods", "pause"],
            "outs": ["models/tuned"],
            "metrics": [{"metrics/train.json": {"cache": False}}],
        },
    }
}
PARAMS = {
    "method": "lora",
    "seed": 0,
    "pause": None,
    "methods": {name: {"learning_rate": method.first_learning_rate, "epochs": 1} for name, method in METHODS.items()},
}

Found = TypeVar("Found")


@dataclass(frozen=True)
class Repository:
    """The clone that experiments are submitted from."""

    folder: Path

    def queue(self, name: str, *settings: str) -> None:
        """Queue experiments as a user does."""
        flags = [word for setting in settings for word in ("-S", setting)]
        ok(dvc(self.folder, "exp", "run", "--queue", "-n", name, *flags))

    def start(self, *arguments: object, by: Sequence[object] = (), **environment: str) -> subprocess.Popen:
        """Start `finetune cluster` here, with `by` before it on the command line."""
        words = [*map(str, by), sys.executable, "-m", "finetune.commands.main", "cluster", *map(str, arguments)]
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            words, cwd=self.folder, env=os.environ | environment | {"PYTHONPATH": paths}, text=True, **pipes
        )

    def cluster(self, *arguments: object) -> subprocess.CompletedProcess:
        """Run `finetune cluster` here."""
        with self.start(*arguments) as process:
            said, errors = process.communicate()
        return subprocess.CompletedProcess(arguments, process.returncode, said, errors)

    def experiments(self) -> dict[str, dict[str, str]]:
        """By name: the model and the metrics of every finished experiment that is here, files fetched by DVC."""
        import dvc.api

        refs = git(self.folder, "for-each-ref", "--format=%(refname)", "refs/exps").split()
        found = {ref.rsplit("/", 1)[1]: ref for ref in refs if ref.count("/") == 4}
        return {
            name: {
                path: dvc.api.read(path, repo=str(self.folder), rev=git(self.folder, "rev-parse", ref).strip())
                for path in ("models/tuned", "metrics/train.json")
            }
            for name, ref in found.items()
        }


def ok(done: subprocess.CompletedProcess) -> str:
    """What a command printed that must succeed."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def git(folder: Path, *arguments: str) -> str:
    return ok(subprocess.run([*GIT, *arguments], cwd=folder, capture_output=True, text=True))


def wait_for(what: Callable[[], Found], seconds: float = 300) -> Found:
    """Wait until `what` returns something; fails after so many seconds."""
    for _ in range(int(seconds / 0.05)):
        if found := what():
            return found
        time.sleep(0.05)
    pytest.fail(f"waited {seconds} s in vain")


@pytest.fixture(scope="session")
def pushed(tmp_path_factory) -> Path:
    """A folder with origin.git, store (DVC's remote), and mine, a clone that has run the pipeline and pushed it."""
    folder = tmp_path_factory.mktemp("cluster")
    git(folder, "init", "--quiet", "--bare", "origin.git")
    git(folder, "clone", "--quiet", "origin.git", "mine")
    mine = folder / "mine"
    shutil.copy(Path(__file__).with_name("work.py"), mine)
    (mine / "dvc.yaml").write_text(yaml.safe_dump(PIPELINE))
    (mine / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    for step in (["init"], ["remote", "add", "--default", "store", folder / "store"], ["repro"]):
        ok(dvc(mine, *step, "--quiet"))
    commit(mine, "a run")
    git(mine, "push", "--quiet", "origin", "HEAD")
    return folder


@pytest.fixture
def repository(pushed, tmp_path) -> Repository:
    """A copy of it, remotes included."""
    shutil.copytree(pushed, tmp_path / "here")
    mine = tmp_path / "here/mine"
    git(mine, "remote", "set-url", "origin", str(tmp_path / "here/origin.git"))
    ok(dvc(mine, "remote", "modify", "store", "url", tmp_path / "here/store", "--quiet"))
    commit(mine, "its own remote")
    git(mine, "push", "--quiet", "origin", "HEAD")
    return Repository(mine)


@pytest.fixture
def race(clone, tmp_path) -> Repository:
    """The real pipeline on tiny models, run and pushed; two seeds of each method are queued."""
    folder = tmp_path / "race"
    git(tmp_path, "clone", "--quiet", "--bare", str(clone), "race/origin.git")
    git(folder, "clone", "--quiet", "origin.git", "mine")
    mine = folder / "mine"
    shutil.copytree(clone / ".dvc/cache", mine / ".dvc/cache")
    ok(dvc(mine, "remote", "add", "--force", "--default", "store", folder / "store", "--quiet"))
    commit(mine, "a remote that others reach")
    git(mine, "push", "--quiet", "origin", "HEAD")
    submitter = Repository(mine)
    for method, epochs in (("lora", 20), ("qlora", 1), ("full", 1)):
        submitter.queue(method, f"method={method}", "seed=1,2", f"methods.{method}.epochs={epochs}")
    return submitter


RACERS = {f"{method}-{seed}" for method in ("lora", "qlora", "full") for seed in (1, 2)}


def check_all_have_arrived(race: Repository) -> None:
    """As `finetune compare` sees them, which fetches what it needs from the DVC remote."""
    words = ("-m", "finetune.commands.main", "compare", "qlora-*", "lora-*", "full-*")
    said = ok(command(sys.executable, *words, cwd=race.folder))
    assert "| qlora | lora | full |" in said.replace("base, 4-bit | ", "")
    report = (race.folder / "plots/comparison.md").read_text()
    assert all(name in report for name in RACERS)


def clones_in_training(trials: Path) -> list[Path]:
    """The clones in the folder `trials` in which training has made a snapshot. One is replaced by the next: look once."""
    try:
        return [path.parents[3] for path in trials.glob("*/models/.snapshots/train-*/step-*")]
    except FileNotFoundError:  # a folder that was renamed as it was read
        return []


def check_search(repository: Repository, said: str) -> None:
    """The search has found the rate of least loss, 0.001, for each method; the next higher one has diverged."""
    results = json.loads((repository.folder / "benchmarks/results/sweep.json").read_text())
    losses = sweep.from_data(results)
    for method in METHODS:
        best = sweep.best(losses, method)
        assert 0.0007 < best.learning_rate < 0.0015
    assert losses[sweep.Trial("lora", 0.002, 1)] == math.inf
    assert f"| {sweep.markdown(results)}"[2:] in said
