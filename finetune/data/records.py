"""Alpaca records in: read from JSON, JSONL, CSV or Parquet, checked one by one, duplicates removed."""

import csv
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.files import write_text
from finetune.sources.catalogue import DATA_SUFFIXES


@dataclass(frozen=True)
class Record:
    """One instruction with its answer. `input` is '' where the instruction stands alone."""

    instruction: str
    input: str
    output: str
    position: str
    """File and index, as in 'alpaca.json[17]', counted from 0."""


def read_records(path: Path, on_bad_record: str) -> tuple[list[Record], Counter[str]]:
    """Read every data file at `path` (file or folder); return the distinct good records and why others were dropped.

    Records are distinct by instruction and input, white space aside; the first is kept. The counter
    maps a reason ('not_an_object', 'missing_instruction', 'wrong_type', 'empty_instruction',
    'empty_output', 'broken_line', 'duplicate') to a count.

    Raises UserError for an unreadable file, for no usable record, and, if `on_bad_record` is
    'error', for the first broken record (a duplicate isn't broken).
    """
    good: dict[tuple[str, str], Record] = {}
    dropped: Counter[str] = Counter()
    for file in _data_files(path):
        for index, raw in _read(file):
            position = f"{file.name}[{index}]"
            reason = _fault(raw)
            if reason and on_bad_record == "error":
                raise UserError(
                    f"{position}: {_EXPLAIN[reason]}; mend the record, or drop such records: -S data.on_bad_record=drop"
                )
            if reason:
                dropped[reason] += 1
                continue
            record = Record(
                raw["instruction"].strip(), (raw.get("input") or "").strip(), raw["output"].strip(), position
            )
            key = (" ".join(record.instruction.split()), " ".join(record.input.split()))
            if key in good:
                dropped["duplicate"] += 1
            else:
                good[key] = record
    if not good:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "the files are empty"
        raise UserError(f"{path}: holds no usable record ({reasons}); records need 'instruction' and 'output' texts")
    return list(good.values()), dropped


def keep_sample(folder: Path, size: int, seed: int) -> None:
    """Replace the data files in `folder` by one JSON file with at most `size` of their records, drawn by `seed`."""
    records = [raw for file in _data_files(folder) for _, raw in _read(file) if raw is not _BROKEN]
    chosen = random.Random(seed).sample(records, min(size, len(records)))
    for file in _data_files(folder):
        file.unlink()
    write_text(folder / "sample.json", json.dumps(chosen, ensure_ascii=False, indent=2))


_EXPLAIN = {
    "not_an_object": "is no object with the keys 'instruction', 'input', 'output'",
    "broken_line": "is not valid JSON",
    "missing_instruction": "has no 'instruction'",
    "missing_output": "has no 'output'",
    "wrong_type": "has an 'instruction', 'input' or 'output' that is no text",
    "empty_instruction": "has an empty 'instruction'",
    "empty_output": "has an empty 'output'",
}

_BROKEN = object()


def _fault(raw: object) -> str | None:
    if raw is _BROKEN:
        return "broken_line"
    if not isinstance(raw, dict):
        return "not_an_object"
    for key in ("instruction", "output"):
        if raw.get(key) is None:
            return f"missing_{key}"
    if not all(isinstance(raw.get(key) or "", str) for key in ("instruction", "input", "output")):
        return "wrong_type"
    for key in ("instruction", "output"):
        if not raw[key].strip():
            return f"empty_{key}"
    return None


def _data_files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in DATA_SUFFIXES)
    if not files:
        raise UserError(f"{path}: no {', '.join(DATA_SUFFIXES)} file there; run `python stages/fetch.py` first")
    if files[0].suffix not in DATA_SUFFIXES:
        raise UserError(f"{path}: unknown kind of file; give one of {', '.join(DATA_SUFFIXES)}")
    return files


def _read(file: Path) -> Iterator[tuple[int, Any]]:
    reader = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[file.suffix]
    try:
        yield from enumerate(reader(file))
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text at byte {error.start}; save it as UTF-8") from None


def _read_json(file: Path) -> Iterator[object]:
    try:
        records = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}; "
            f"mend it, or name it .jsonl if it holds one record a line"
        ) from None
    if not isinstance(records, list):
        raise UserError(f"{file}: must hold a list of records, got {type(records).__name__}")
    yield from records


def _read_jsonl(file: Path) -> Iterator[object]:
    for line in file.read_text(encoding="utf-8-sig").split("\n"):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            yield _BROKEN


def _read_csv(file: Path) -> Iterator[object]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        try:
            yield from csv.DictReader(stream)
        except csv.Error as error:
            raise UserError(f"{file}: not valid CSV: {error}") from None


def _read_parquet(file: Path) -> Iterator[object]:
    import pyarrow
    from pyarrow import parquet

    try:
        yield from parquet.read_table(file).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file}: not a Parquet file: {str(error).splitlines()[0]}") from None
