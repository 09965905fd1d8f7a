"""What all commands share: how they end, and their flags. A flag wins over params.yaml."""

import argparse
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from finetune import dvc_files, ending, network, places
from finetune.errors import UserError, quoted
from finetune.methods import METHODS

_LONGEST_REFUSAL = 300

CHECKPOINTS = "an experiment, a Git revision, a registered version, a folder, or workspace (the last run's)"
"""What names a fine-tuned model."""


def run(main: Callable[[], None], stdout_is_the_result: bool = False) -> None:
    """Call `main` in the repository's root, libraries kept quiet and offline (`network`). However it ends, one sentence
    says so (`endings`).

    A stage that DVC runs starts only if what it reads is whole.
    """
    for quiet in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        os.environ.setdefault(quiet, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    with ending.sentences(stdout_is_the_result), network.cut_off(), places.at_root():
        dvc_files.check_inputs()
        main()


def source(name: str) -> str:
    """The name of a model or of data, which may be a path from where the user stands."""
    if not name.strip():
        raise argparse.ArgumentTypeError("is empty; give a name or a path")
    try:
        path = places.given(name)
        return str(path) if path.exists() else name
    except (OSError, ValueError):
        raise argparse.ArgumentTypeError(f"{quoted(name)} is no name") from None


def folder(text: str) -> Path:
    """A folder that the user names, from where they stand."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give the name of a folder")
    return places.given(text)


def count(text: str) -> int:
    """A number of things, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {quoted(text)}")
    return int(text)


def port(text: str) -> int:
    """A TCP port; 0 is any that is free."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be from 0 to 65535, got {quoted(text)}")
    return int(text)


_FLAGS: dict[str, dict[str, Any]] = {
    "--size": dict(type=int, metavar="N", help="records to sample (data.size)"),
    "--method": dict(metavar="NAME", help=f"{', '.join(METHODS)} (method)"),
    "--model_name": dict(
        type=source, metavar="NAME", help="base model: catalogue name, hub id or folder (model.source)"
    ),
    "--dataset": dict(type=source, metavar="PATH", help="data to read instead of the pipeline's"),
    "--ckpt": dict(type=folder, default=places.TUNED, metavar="DIR", help="fine-tuned model (default: %(default)s)"),
    "--out_dir": dict(
        type=folder, metavar="DIR", help="write everything into this folder instead of the pipeline's places"
    ),
}


class _Parser(argparse.ArgumentParser):
    """A parser whose refusal is one sentence, like every other."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        short = message if len(message) <= _LONGEST_REFUSAL else f"{message[:_LONGEST_REFUSAL]}…"
        raise UserError(f"{short.removeprefix('argument ')}; `{self.prog} --help` shows what can be given")


def parser(
    description: str | None, flags: Sequence[str] = (), prog: str | None = None, **options: Any
) -> argparse.ArgumentParser:
    """A parser with the named shared flags. `prog` is what usage calls the command (default: the script's name);
    `options` are argparse's own."""
    result = _Parser(prog=prog, description=description, **options)
    for flag in flags:
        result.add_argument(flag, **_FLAGS[flag])
    return result


def check_replaceable(folder: Path) -> None:
    """Raise UserError if `folder` holds something that isn't an earlier output (which has its facts), nor the curves of a
    run that was interrupted."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder as --out_dir")
    if (
        folder.is_dir()
        and {path.name for path in folder.iterdir()} - {places.PLOTS.name}
        and not (folder / places.FACTS).exists()
    ):
        raise UserError(f"{folder}: holds other files, which would be lost; give a new or empty folder as --out_dir")
