"""Damaged files, and remotes that can't be reached."""

import atexit
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from helpers import commit, damage, dvc

from faults import Bench, Fault
from finetune import yaml_file

FACTS = Path("models/tuned/facts.yaml")
PIPELINE = {
    "stages": {
        "train": {
            "cmd": f"mkdir -p data/prepared {FACTS.parent} && echo 'method: full' > {FACTS}",
            "outs": ["data/prepared", FACTS.parent.as_posix()],
        },
        "eval": {"cmd": "python -c 'from finetune import cli; cli.run(print)'", "deps": [FACTS.parent.as_posix()]},
    }
}


def told(what: str, line: str, names: str, prepare: Callable[[Path], object]) -> Fault:
    """A folder that `prepare` made a repository, or didn't, and a command line there, which must refuse."""

    def cause(bench: Bench) -> str:
        prepare(bench.folder)
        return bench.refused_by_program(line)

    return Fault("remotes", what, names, cause)


@cache
def template() -> Path:
    """Git and DVC, a model of one file, and a remote that has it."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    atexit.register(shutil.rmtree, folder)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    (folder / "dvc.yaml").write_text(yaml_file.text(PIPELINE))
    (folder / "params.yaml").write_text("{}\n")
    (folder / ".gitignore").write_text("/store\n")
    for step in (["init"], ["remote", "add", "--default", "store", "store"], ["repro", "train"], ["push"]):
        done = dvc(folder, *step, "--quiet")
        assert done.returncode == 0, done.stderr
    commit(folder, "a model")
    return folder


def reproduced(folder: Path) -> None:
    """A repository that has run, and pushed."""
    shutil.copytree(template(), folder, dirs_exist_ok=True)


def the_object(storage: Path) -> Path:
    """The one file of the model, in DVC's cache or remote."""
    return next(file for file in (storage / "files/md5").rglob("*") if file.is_file() and file.suffix != ".dir")


def damaged_workspace(folder: Path) -> None:
    """As a bad disk leaves it: DVC sees no change."""
    reproduced(folder)
    damage(folder / FACTS)


def damaged_remote(folder: Path) -> None:
    """And nothing of it here."""
    reproduced(folder)
    damage(the_object(folder / "store"))
    shutil.rmtree(folder / ".dvc/cache")
    shutil.rmtree(folder / FACTS.parent)


def damaged_remote_whose_list_is_here(folder: Path) -> None:
    """As after a `dvc pull`, which has left the damaged file out."""
    reproduced(folder)
    damage(the_object(folder / "store"))
    the_object(folder / ".dvc/cache").unlink()
    shutil.rmtree(folder / FACTS.parent)


def weights_of_another_run(folder: Path) -> None:
    """As damage leaves them, too: not the ones that the run has noted."""
    for name, text in (
        (FACTS, "method: full\nbase: models/base\nseed: 1\ntemplate: alpaca\ndata: {source: words, licence: mine}\n"),
        (FACTS.with_name("model.safetensors"), "weights"),
        (Path("metrics/train.facts.json"), '{"weights": "of another run"}'),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def nothing(folder: Path) -> None:
    """No repository."""


VERIFY = "python -m finetune.commands.main verify"

FAULTS: list[Fault] = [
    told(
        "`dvc repro`, where a stage's input was damaged and DVC sees no change",
        "dvc repro --force --single-item eval",
        "models/tuned/facts.yaml: … dvc.lock … damaged … DVC",
        damaged_workspace,
    ),
    told(
        "`verify`, where a file of the workspace was damaged",
        VERIFY,
        "models/tuned/facts.yaml … `dvc pull --force` … `dvc repro`",
        damaged_workspace,
    ),
    told(
        "`verify --remote`, where an object of the remote was damaged, and no whole copy is here",
        f"{VERIFY} --remote",
        "models/tuned/facts.yaml … `finetune verify --remote` … `dvc repro`",
        damaged_remote_whose_list_is_here,
    ),
    told(
        "a checkpoint by its name, damaged in the remote",
        "python -m finetune.commands.main register haiku",
        "HEAD … models/tuned/facts.yaml … `finetune verify --remote`",
        damaged_remote,
    ),
    told(
        "`chat`, where the weights in models/tuned aren't those of the last run",
        "python -m finetune.commands.main chat --prompt hello",
        "workspace: … models/tuned … metrics/train.facts.json … `finetune verify` … --ckpt models/tuned",
        weights_of_another_run,
    ),
    told("`verify --remote nobody`", f"{VERIFY} --remote nobody", "remote nobody: … 'nobody'", reproduced),
    told("`verify` outside a DVC repository", VERIFY, "no DVC repository … verify", nothing),
]
