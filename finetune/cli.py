"""What the stage scripts share: how they end, and their flags. A flag wins over params.yaml."""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from finetune.errors import UserError

_FLAGS = {
    "--size": dict(type=int, metavar="N", help="records to sample (data.size)"),
    "--method": dict(metavar="NAME", help="qlora, lora or full (method)"),
    "--model_name": dict(metavar="NAME", help="base model: catalogue name, hub id or folder (model.source)"),
    "--dataset": dict(metavar="PATH", help="data to read instead of the pipeline's"),
    "--ckpt": dict(
        type=Path, default=Path("models/tuned"), metavar="DIR", help="fine-tuned model (default: %(default)s)"
    ),
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


def parser(description: str, *flags: str) -> argparse.ArgumentParser:
    """A parser with the named shared flags."""
    result = argparse.ArgumentParser(description=description)
    for flag in flags:
        result.add_argument(flag, **_FLAGS[flag])
    return result


def places(out_dir: Path | None, folder: str) -> tuple[Path, Path, Path]:
    """Where a stage's folder, metrics and plots go: the pipeline's places, or all within `out_dir`."""
    if out_dir is None:
        return Path(folder), Path("metrics"), Path("plots")
    return out_dir, out_dir / "metrics", out_dir / "plots"


def check_replaceable(folder: Path, marker: str) -> None:
    """Raise UserError if `folder` holds something that isn't an earlier output (which has a file `marker`)."""
    if folder.is_file():
        raise UserError(f"{folder}: is a file; give a folder as --out_dir")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / marker).exists():
        raise UserError(f"{folder}: holds other files, which would be lost; give a new or empty folder as --out_dir")
