"""Which run unfinished work belongs to: its settings, its inputs, its code, and what computes it."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from finetune import device, yaml_file
from finetune.files import sha256

_CODE = Path(__file__).parents[2]
"""The repository that this code lies in, which a queued experiment has a copy of."""


def identity(stage: str, settings: dict[str, Any], inputs: Iterable[Path]) -> str:
    """16 hex digits that are the same for the same result alone: `settings`, the bytes of every file of the folders
    `inputs`, the code that dvc.yaml says `stage` depends on, and the libraries, kind of device and dtype."""
    parts = [
        stage,
        settings,
        [_contents(folder, "*") for folder in inputs],
        [_contents(path, "*.py") for path in _code_of(stage)],
        [device.versions(), device.device().type, str(device.compute_dtype())],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _contents(path: Path, pattern: str) -> dict[str, str]:
    """Place within `path`, a file or folder, and hash of each file."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob(pattern) if file.is_file())
    return {file.relative_to(path).as_posix(): sha256(file) for file in files}


def _code_of(stage: str) -> list[Path]:
    """What of the code dvc.yaml lists for `stage`; all of it where there is no dvc.yaml."""
    pipeline = _CODE / "dvc.yaml"
    if not pipeline.exists():
        return [_CODE / "finetune"]
    entry = yaml_file.read(pipeline)["stages"][stage]
    deps = [_CODE / path for path in entry.get("do", entry)["deps"] if path.startswith(("stages/", "finetune/"))]
    return sorted(deps)
