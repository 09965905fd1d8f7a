"""Outputs appear whole or not at all: written under a temporary name, then renamed."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml


@contextmanager
def whole_folder(path: Path, keep: str | None = None) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` if the block succeeds, replacing all that was there but `keep`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside `path` and not in the system's temporary folder: a rename is one step within a file system only.
    draft = path.with_name(f".{path.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        if keep and (path / keep).exists():
            (path / keep).rename(draft / keep)
        if path.is_dir():
            shutil.rmtree(path)
        draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8", newline="\n")
    # Not `rename`, which refuses to overwrite a file on Windows.
    draft.replace(path)


def write_json(path: Path, value: dict) -> None:
    """Write `value` as indented JSON, keys in their order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_yaml(path: Path, value: dict) -> None:
    """Write `value` as YAML, keys in their order."""
    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def read_yaml(path: Path) -> dict:
    """Read what `write_yaml` wrote."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def read_json(path: Path) -> dict:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """Write one JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict]:
    """Read what `write_jsonl` wrote."""
    return jsonl_rows(path.read_text(encoding="utf-8"))


def jsonl_rows(text: str) -> list[dict]:
    """The objects in the text that `write_jsonl` wrote; `str.splitlines` would also split inside strings, at U+2028."""
    return [json.loads(line) for line in text.split("\n") if line]


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
