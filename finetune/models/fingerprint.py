"""Which weights a base model has: an adapter fits no others, also where all shapes are the same."""

import hashlib
import math
import sys
from pathlib import Path

from finetune.errors import UserError

SAMPLE = 2**12
READ_AT_MOST = 2**30
"""Bytes: of larger files a sample in every so many, a second or two instead of minutes; every matrix has its share."""


def fingerprint(folder: Path | str) -> str:
    """A short hash of the weights' files in `folder`, the same wherever they lie."""
    digest = hashlib.sha256()
    files = _weight_files(Path(folder))
    stride = SAMPLE * max(1, math.ceil(sum(path.stat().st_size for path in files) / READ_AT_MOST))
    for path in files:
        digest.update(str(path.stat().st_size).encode())
        with path.open("rb") as file:
            for start in range(0, path.stat().st_size, stride):
                file.seek(start)
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()[:16]


def beside_weights(folder: Path) -> list[Path]:
    """The other files of a model's folder: configuration, tokenizer, facts."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix not in (".safetensors", ".bin"))


def check_base(adapter: Path, facts: dict, base: Path | str) -> None:
    """Raise UserError if the adapter in `adapter`, made as `facts` say, belongs to weights other than those in `base`.

    A folder from before fingerprints were noted can't be checked, which is said on stderr.
    """
    noted = facts.get("base_fingerprint")
    if noted is None:
        print(f"{adapter}: notes no fingerprint of its base, so nobody can tell whether {base} is it", file=sys.stderr)
    elif noted != fingerprint(base):
        raise UserError(
            f"{adapter}: this adapter was trained over other weights (fingerprint {noted}) than those in {base} "
            f"({fingerprint(base)}); give its own base model as --model_name, or train again"
        )


def _weight_files(folder: Path) -> list[Path]:
    """Those of a model, or of an adapter."""
    kinds = ("model*.safetensors", "adapter_model.safetensors")
    return next((files for kind in kinds if (files := sorted(folder.glob(kind)))), [])
