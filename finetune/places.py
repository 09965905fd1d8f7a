"""Where the pipeline's files lie, from the repository's root. dvc.yaml names the same places."""

import os
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import UserError

BASE = Path("models/base")
BASE_4BIT = Path("models/base-4bit")
TUNED = Path("models/tuned")
RAW = Path("data/raw")
PREPARED = Path("data/prepared")
PREDICTIONS = Path("data/predictions")
METRICS = Path("metrics")
PLOTS = Path("plots")
RESULTS = Path("benchmarks/results")
"""Measured once and committed: the comparison, the search, the benchmarks."""

CURVES = Path("live/plots/metrics")
"""Within `PLOTS`: DVCLive's tables, one a metric."""

MEMORY_TABLE = "memory.tsv"
"""Within `PLOTS`: memory against time."""

FACTS = "facts.yaml"
"""In a model or data folder: what it was made of. No .json, which would be one of the user's data files."""


_PIPELINE = (BASE, BASE_4BIT, TUNED, RAW, PREPARED, PREDICTIONS, METRICS, PLOTS)
_MARKS = ("params.yaml", "dvc.yaml")
_stands_in = Path()
"""Where the user stands, from the root: what a path of theirs is relative to."""


@contextmanager
def at_root() -> Iterator[None]:
    """Work in the repository's root while the block runs: the folder at hand if it has a params.yaml, else the nearest
    one above with a params.yaml and a dvc.yaml. Raises UserError if the folder at hand is gone."""
    global _stands_in
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise UserError("the folder that you stand in was removed; go to the repository (cd) and try again") from None
    root = _root(here)
    before, _stands_in = _stands_in, here.relative_to(root)
    try:
        with chdir(root):
            yield
    finally:
        _stands_in = before


def _root(here: Path) -> Path:
    if (here / _MARKS[0]).exists():
        return here
    above = (folder for folder in here.parents if all((folder / mark).is_file() for mark in _MARKS))
    return next(above, here)


def given(path: str) -> Path:
    """A path that the user typed, which is relative to where they stand, as it is from the root."""
    expanded = Path(path).expanduser()
    if expanded.is_absolute() or _stands_in == Path():
        return expanded
    return Path(os.path.relpath(_stands_in / expanded))


def standing() -> Path:
    """The folder that the user stands in."""
    return Path.cwd() / _stands_in


def of_source(source: str) -> str:
    """A source of params.yaml: where it is a relative path that the temporary copy of the repository lacks in which
    DVC runs queued experiments, the same path from the repository itself, as files that Git doesn't track are there.
    """
    path = Path(source)
    if path.expanduser().is_absolute() or path.exists() or not original(path).exists():
        return source
    return str(original(path))


def original(path: Path) -> Path:
    """`path`, relative to the root: in the temporary copy in which DVC runs a queued experiment, that of the repository."""
    copied = _copied()
    return path if copied is None else Path(os.path.normpath(copied / path))


def in_copy() -> bool:
    """Whether the root is such a copy."""
    return _copied() is not None


def _copied() -> Path | None:
    """The repository whose temporary copy the root is."""
    folders = (parent for parent in Path.cwd().parents if parent.parts[-3:] == (".dvc", "tmp", "exps"))
    return next((folder.parents[2] for folder in folders), None)


@dataclass(frozen=True)
class Places:
    """Where one stage writes."""

    folder: Path
    metrics: Path
    plots: Path


def places(out_dir: Path | None, folder: Path) -> Places:
    """`folder` and the pipeline's metrics and plots; or all within `out_dir`, if one is given.

    Raises UserError if `out_dir` is a file, or a folder whose other contents the stage would replace.
    """
    if out_dir is None:
        return Places(folder, METRICS, PLOTS)
    check_apart(out_dir, folder)
    return Places(out_dir, out_dir / METRICS, out_dir / PLOTS)


def check_apart(out_dir: Path, own: Path) -> None:
    """Raise UserError if `out_dir` is a file, holds the pipeline's places, or lies in one that isn't a stage's `own`."""
    out = Path(os.path.realpath(out_dir))
    if any(part.is_file() for part in (out, *out.parents)):
        raise UserError(f"{out_dir}: is a file, or lies in one; give a folder as --out_dir")
    for place in (Path(), *_PIPELINE, Path(".git"), Path(".dvc")):
        at = Path(os.path.realpath(place))
        if at.is_relative_to(out) or (place not in (Path(), own) and out.is_relative_to(at)):
            raise UserError(
                f"{out_dir}: {_what(place)}, which would be lost; give a folder of its own as --out_dir, as in models/mine"
            )


def _what(place: Path) -> str:
    return "holds this whole repository" if place == Path() else f"is part of the pipeline's {place}, or holds it"
