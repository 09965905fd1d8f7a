"""What all commands share: how they end, and their flags. A flag wins over params.yaml."""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finetune import places
from finetune.errors import UserError
from finetune.methods import METHODS

_FLAGS: dict[str, dict[str, Any]] = {
    "--size": dict(type=int, metavar="N", help="records to sample (data.size)"),
    "--method": dict(metavar="NAME", help=f"{', '.join(METHODS)} (method)"),
    "--model_name": dict(metavar="NAME", help="base model: catalogue name, hub id or folder (model.source)"),
    "--dataset": dict(metavar="PATH", help="data to read instead of the pipeline's"),
    "--ckpt": dict(type=Path, default=places.TUNED, metavar="DIR", help="fine-tuned model (default: %(default)s)"),
    "--out_dir": dict(
        type=Path, metavar="DIR", help="write everything into this folder instead of the pipeline's places"
    ),
}


def run(main: Callable[[], None]) -> None:
    """Call `main`, libraries kept quiet; print a `UserError` as one sentence on stderr and exit with status 1."""
    for quiet in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        os.environ.setdefault(quiet, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted")


def parser(description: str | None, flags: Sequence[str] = (), prog: str | None = None) -> argparse.ArgumentParser:
    """A parser with the named shared flags. `prog` is what usage calls the command (default: the script's name)."""
    result = argparse.ArgumentParser(prog=prog, description=description)
    for flag in flags:
        result.add_argument(flag, **_FLAGS[flag])
    return result


def check_replaceable(folder: Path) -> None:
    """Raise UserError if `folder` holds something that isn't an earlier output (which has its facts)."""
    if folder.is_file():
        raise UserError(f"{folder}: is a file; give a folder as --out_dir")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / places.FACTS).exists():
        raise UserError(f"{folder}: holds other files, which would be lost; give a new or empty folder as --out_dir")
