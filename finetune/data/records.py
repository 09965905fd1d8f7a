"""Records in: read from data files in any known form, checked one by one, duplicates removed."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data import forms
from finetune.data.datafiles import Columns, files_at, raw_records
from finetune.data.spool import Spool, StoredRecords
from finetune.data.turns import Record
from finetune.errors import UserError
from finetune.files import whole_file
from finetune.sources.provenance import provenance


@dataclass(frozen=True)
class Records:
    """What was read, and what wasn't used of it."""

    good: StoredRecords
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason, a key of `forms.EXPLAIN` or 'duplicate', to a count."""
    unanswered: int = 0
    """Turns left out because no answer to learn follows them."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Column that no form reads, to the records that have one."""
    sources: frozenset[str] = frozenset()
    """Folders of the sources that the good records came from, where several are mixed."""


def read_records(path: Path, on_bad_record: str, columns: Columns = None, folder: Path | None = None) -> Records:
    """Read every data file at `path` (file or folder): the distinct good records, and why others were dropped.

    Records are distinct by all that comes before the last answer, white space aside; the first is kept. They are put
    aside on the disk, in a file without a name in `folder`; memory holds a few bytes of each.

    Raises UserError for an unreadable file, for no usable record, and, if `on_bad_record` is
    'error', for the first broken record (a duplicate isn't broken).
    """
    good = StoredRecords(folder)
    seen = set[bytes]()
    dropped: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    sources = set[str]()
    unanswered = 0
    for source, file, index, raw in _every_raw_record(path, columns):
        position = f"{_name(file, path)}[{index}]"
        try:
            reading = forms.read(raw, columns)
        except forms.BadRecord as bad:
            dropped[_counted(str(bad), position, on_bad_record)] += 1
            continue
        record = Record(reading.turns, position, reading.form, source)
        unanswered += reading.unanswered
        ignored.update(reading.ignored)
        question = _hash(record)
        if question in seen:
            dropped["duplicate"] += 1
            continue
        seen.add(question)
        sources.add(source)
        good.append(record)
    if not good:
        raise UserError(f"{path}: holds no usable record: {_reasons(dropped)}")
    return Records(good, dropped, unanswered, ignored, frozenset(sources - {""}))


def _hash(record: Record) -> bytes:
    """128 bits that two records share only if their questions are the same."""
    # No part holds a line break.
    return hashlib.blake2b("\n".join(record.question).encode(), digest_size=16).digest()


def weights(path: Path) -> dict[str, float]:
    """Folder -> weight of each source mixed at `path`, as fetch noted it; empty if they aren't weighted."""
    return {part["folder"]: part["weight"] for part in _parts(path) if part["weight"] is not None}


def keep_sample(folder: Path, size: int, seed: int, columns: Columns = None) -> None:
    """Replace the data files in `folder` by one JSON file with at most `size` of their records, drawn by `seed`.

    Of several sources each is sampled so. Memory holds a few bytes of each record.
    """
    for part in _sources(folder):
        files = files_at(part)
        spool = Spool(part)
        for file in files:
            for _, raw in raw_records(file, columns):
                if not isinstance(raw, forms.Unreadable):
                    # Escaped, because half of a surrogate pair can't be written in UTF-8; dates of Parquet become texts.
                    spool.append(json.dumps(raw, indent=2, default=str))
        chosen = random.Random(seed).sample(range(len(spool)), min(size, len(spool)))
        for file in files:
            file.unlink()
        _write_list(part / "sample.json", (spool[index] for index in chosen))


def _write_list(path: Path, items: Iterator[str]) -> None:
    """Write the JSON `items`, each indented by two spaces, as one list so."""
    with whole_file(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as file:
        separator = "["
        for item in items:
            indented = item.replace("\n", "\n  ")
            file.write(f"{separator}\n  {indented}")
            separator = ","
        file.write("[]" if separator == "[" else "\n]")


def _sources(path: Path) -> list[Path]:
    """The folder of each source mixed at `path`; `path` itself if it is one source."""
    return [path / part["folder"] for part in _parts(path)] or [path]


def _parts(path: Path) -> list[dict]:
    """What fetch noted of each source mixed at `path`."""
    return provenance(path).get("sources", [])


def _every_raw_record(path: Path, columns: Columns) -> Iterator[tuple[str, Path, int, object]]:
    """Source's folder, file, index and raw value."""
    for part in _sources(path):
        for file in files_at(part):
            for index, raw in raw_records(file, columns):
                yield part.name if part != path else "", file, index, raw


def _name(file: Path, path: Path) -> str:
    return file.name if file == path else file.relative_to(path).as_posix()


def _counted(reason: str, position: str, on_bad_record: str) -> str:
    if on_bad_record == "error":
        raise UserError(
            f"{position}: {forms.EXPLAIN[reason]}; mend the record, or drop such records: -S data.on_bad_record=drop"
        )
    return reason


def _reasons(dropped: Counter[str]) -> str:
    """What was wrong with the records, the most frequent first, and that one explained."""
    if not dropped:
        return "the files are empty"
    counts = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
    return f"{counts}; a record {forms.EXPLAIN[dropped.most_common(1)[0][0]]}"
