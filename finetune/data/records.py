"""Records in: read from data files in any known form, checked one by one, duplicates removed."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data import forms
from finetune.data.datafiles import Columns, files_at, raw_records
from finetune.data.turns import Record
from finetune.errors import UserError
from finetune.files import write_text
from finetune.sources.provenance import provenance


@dataclass(frozen=True)
class Records:
    """What was read, and what wasn't used of it."""

    good: list[Record]
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason, a key of `forms.EXPLAIN` or 'duplicate', to a count."""
    unanswered: int = 0
    """Turns left out because no answer to learn follows them."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Column that no form reads, to the records that have one."""


def read_records(path: Path, on_bad_record: str, columns: Columns = None) -> Records:
    """Read every data file at `path` (file or folder): the distinct good records, and why others were dropped.

    Records are distinct by all that comes before the last answer, white space aside; the first is kept.

    Raises UserError for an unreadable file, for no usable record, and, if `on_bad_record` is
    'error', for the first broken record (a duplicate isn't broken).
    """
    good: dict[tuple[str, ...], Record] = {}
    dropped: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
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
        if good.setdefault(record.question, record) is not record:
            dropped["duplicate"] += 1
    if not good:
        raise UserError(f"{path}: holds no usable record: {_reasons(dropped)}")
    return Records(list(good.values()), dropped, unanswered, ignored)


def weights(path: Path) -> dict[str, float]:
    """Folder -> weight of each source mixed at `path`, as fetch noted it; empty if they aren't weighted."""
    return {part["folder"]: part["weight"] for part in _parts(path) if part["weight"] is not None}


def keep_sample(folder: Path, size: int, seed: int, columns: Columns = None) -> None:
    """Replace the data files in `folder` by one JSON file with at most `size` of their records, drawn by `seed`.

    Of several sources each is sampled so.
    """
    for part in _sources(folder):
        files = files_at(part)
        records = [
            raw for file in files for _, raw in raw_records(file, columns) if not isinstance(raw, forms.Unreadable)
        ]
        chosen = random.Random(seed).sample(records, min(size, len(records)))
        for file in files:
            file.unlink()
        # Escaped, because half of a surrogate pair can't be written in UTF-8; dates of Parquet become texts.
        write_text(part / "sample.json", json.dumps(chosen, indent=2, default=str))


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
