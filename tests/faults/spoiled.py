"""Base models with one thing wrong, and stages run on them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from helpers import base_for, stage
from safetensors.torch import load_file, save_file

from faults import Bench

Change = Callable[[Path], object]


def base(bench: Bench, change: Change, family: str = "llama") -> str:
    """A tiny model in the workspace's folder `mine`, changed; its path as the sentence will name it."""
    shutil.copytree(bench.models[family], bench.folder / "mine")
    change(bench.folder / "mine")
    return "mine"


def prepared(bench: Bench, change: Change, family: str = "llama") -> str:
    """The same with data prepared by it, before the change."""
    mine = base(bench, lambda folder: None, family)
    stage("prepare", "--model_name", mine)
    change(bench.folder / "mine")
    return mine


def trained(bench: Bench, method: str, *arguments: object, family: str = "llama", **params: object) -> str:
    """What train prints, refusing, with `params` and `method` on a tiny model."""
    bench.params(**params)
    stage("prepare", "--model_name", bench.models[family])
    return bench.refused(
        "train", "--model_name", base_for(bench.models, family, method), "--method", method, *arguments
    )


def told(folder: Path, **changes: object) -> None:
    """Change keys of config.json; None takes one out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def weights(folder: Path, change: Callable[[dict], object]) -> None:
    """Change the model's weights by name."""
    found = load_file(folder / "model.safetensors")
    change(found)
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
