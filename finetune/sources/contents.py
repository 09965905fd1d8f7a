"""Which files of a folder are taken: a model's config, weights and tokenizer, never code or a pickle; and nothing that a
symbolic link brings in from elsewhere."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from finetune.errors import UserError, quoted
from finetune.sources.catalogue import DATA_SUFFIXES

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""A model's weights, or the list of the files that hold them."""
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""The files in which peft keeps an adapter."""

TAKEN = (".safetensors", ".json", ".txt", ".jinja", ".model", ".tiktoken")
"""Endings of names: weights, config, tokenizer and chat template. Pickles (.bin, .pt), code (.py) and all else in the
folder are left out."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

_BY_CONTENT = re.compile(r"/(models|datasets)--[^/]+/blobs/[0-9a-f]{40,64}|/files/md5/[0-9a-f]{2}/[0-9a-f]{30}")
"""Where the Hub's cache and DVC's keep a file under the hash of its content, so that a link there names its content."""


def is_taken(name: str) -> bool:
    """Whether `name` is a file at the top of a model's folder that the model needs."""
    at_the_top = "/" not in name and not name.startswith(".")
    return at_the_top and name.endswith(TAKEN) and not name.endswith(".bin.index.json")


def useful_files(kind: str, names: list[str]) -> list[str]:
    """Those of a repository's files `names` that a model needs (`is_taken`), or that hold training data."""
    if kind == "model":
        return [name for name in names if is_taken(name)]
    data = [name for name in names if name.endswith(DATA_SUFFIXES) and not Path(name).name.startswith("dataset_info")]
    return [name for name in data if "train" in name.lower()] or data


def model_files(folder: Path) -> list[Path]:
    """The files of the model in `folder` that are taken, sorted by name. Raises UserError as `check_links` does."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and is_taken(path.name))
    check_links(files, folder)
    return files


def check_links(files: Iterable[Path], folder: Path) -> None:
    """Raise UserError if one of `files` is, or lies behind, a link that leads out of `folder`: a copy would publish it.

    Links into the Hub's cache or DVC's are allowed: there, files are known by their hash."""
    root = folder.resolve()
    for path in files:
        real = path.resolve()
        if not real.is_relative_to(root) and not _BY_CONTENT.search(real.as_posix()):
            raise UserError(
                f"{path}: is a link that leads out of {folder}, to {real}; put the file itself there, or remove the link"
            )


def check_weights(folder: Path) -> None:
    """Raise UserError unless the model in `folder` has its weights as safetensors, all of them in that folder.

    A pickle is a program, which runs when it is read.
    """
    if (folder / WEIGHTS).is_file():
        return
    if (folder / INDEX).is_file():
        _check_index(folder / INDEX)
        return
    pickled = sorted(path.name for kind in _PICKLES for path in folder.glob(kind))
    if pickled:
        raise UserError(pickles_alone(str(folder), pickled[0]))
    raise UserError(f"{folder}: holds no weights ({WEIGHTS}); fetch the model again")


def check_adapter(folder: Path) -> None:
    """Raise UserError unless the adapter in `folder` has its weights as safetensors: peft would read a pickle as well."""
    if not (folder / ADAPTER).is_file():
        pickled = folder / "adapter_model.bin"
        raise UserError(
            pickles_alone(str(folder), pickled.name)
            if pickled.exists()
            else f"{folder}: holds no weights ({ADAPTER}); train it again"
        )


def pickles_alone(where: str, name: str) -> str:
    """The sentence about a model at `where` whose weights are in the pickle `name` and in no other form."""
    return (
        f"{where}: holds its weights as a pickle alone ({name}), which could run code when it is read; choose a revision "
        f"with .safetensors files, or convert it where you trust it: `from_pretrained`, then `save_pretrained`, of "
        f"transformers"
    )


def _check_index(path: Path) -> None:
    try:
        named = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: isn't the index of a model's weights ({error}); fetch the model again") from None
    for name in named:
        plain = isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name
        if not plain or not (path.parent / name).is_file():
            raise UserError(
                f"{path}: names {quoted(name)}, which is no .safetensors file in its folder; fetch the model again"
            )
