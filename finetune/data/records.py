"""Records read from data files in any known form, checked one by one, duplicates removed, and kept on the disk."""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from finetune.data import forms
from finetune.data.datafiles import Columns, files_at, raw_records
from finetune.data.forms import Turn
from finetune.errors import UserError
from finetune.files import disk_named, existing, whole_file
from finetune.sources.catalogue import provenance

Value = TypeVar("Value")


class Spool(Generic[Value]):
    """Values kept on the disk in the order in which they come, and read back one at a time in any order.

    Memory holds 8 bytes of each. They lie as JSON in a file that has no name, so nothing of it stays, however the
    process ends.
    """

    def __init__(
        self,
        folder: Path | None = None,
        to_json: Callable[[Value], Any] = lambda value: value,
        from_json: Callable[[Any], Value] = lambda value: value,
    ) -> None:
        """`folder` (or the nearest above it that exists; by default the system's for temporary files) takes the file.

        `to_json` makes what JSON can write of a value, and `from_json` the value again.
        """
        self._to_json, self._from_json = to_json, from_json
        self._folder = existing(folder) if folder else Path(tempfile.gettempdir())
        with disk_named(self._folder):
            self._file = tempfile.TemporaryFile(dir=self._folder, suffix=".draft")  # noqa: SIM115
        self._ends = array("Q", [0])
        self._reading = False

    def append(self, value: Value) -> None:
        """Add a value. Raises UserError if the disk is full, or refuses."""
        # A file's name, and a record that is only sampled, may hold half of a surrogate pair. Dates of Parquet become text.
        text = json.dumps(self._to_json(value), ensure_ascii=False, default=str)
        content = text.encode(errors="surrogatepass")
        with disk_named(self._folder):
            if self._reading:
                self._file.seek(0, os.SEEK_END)
                self._reading = False
            self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Value:
        if not 0 <= index < len(self):
            raise IndexError(index)
        with disk_named(self._folder):
            self._file.seek(self._ends[index])
            self._reading = True
            content = self._file.read(self._ends[index + 1] - self._ends[index])
        return self._from_json(json.loads(content.decode(errors="surrogatepass")))

    def __iter__(self) -> Iterator[Value]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class Record:
    """A conversation that ends in an answer. The system's turn, if there is one, is the first."""

    turns: tuple[Turn, ...]
    position: str
    """File and index, as in 'alpaca.json[17]', counted from 0."""
    form: str
    """Its form in the file, a key of `forms.FORMS`."""
    source: str = ""
    """Folder of the source that it came from where several are mixed; '' otherwise."""

    def key(self) -> bytes:
        """128 bits that two records share only if all before their last answers is the same, white space aside."""
        parts = (" ".join(part.split()) for turn in self.turns[:-1] for part in (turn.role, turn.text, turn.input))
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).digest()  # no part holds a line break


@dataclass(frozen=True)
class Records:
    """The records that were read, and counts of what wasn't used."""

    good: Spool[Record]
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason, a key of `forms.EXPLAIN` or 'duplicate', to a count."""
    unanswered: int = 0
    """Turns left out because no answer to learn follows them."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Column that no form reads, to the number of records that have it."""
    sources: frozenset[str] = frozenset()
    """Folders of the sources that the good records came from, where several are mixed."""


def read_records(path: Path, on_bad_record: str, columns: Columns = None, folder: Path | None = None) -> Records:
    """Read every data file at `path` (file or folder): the distinct good records, and why others were dropped.

    Records with the same `key` are duplicates; the first is kept. Good records are kept on the disk, in a nameless file
    in `folder`; memory holds a few bytes of each.

    Raises UserError for an unreadable file, for no usable record, and, if `on_bad_record` is
    'error', for the first broken record (a duplicate isn't broken).
    """
    good = Spool[Record](folder, _to_json, _from_json)
    seen = set[bytes]()
    dropped: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    sources = set[str]()
    unanswered = 0
    for source, file, index, raw in _every_raw_record(path, columns):
        position = f"{file.name if file == path else file.relative_to(path).as_posix()}[{index}]"
        try:
            reading = forms.read(raw, columns)
        except forms.BadRecord as bad:
            dropped[_counted(str(bad), position, on_bad_record)] += 1
            continue
        record = Record(reading.turns, position, reading.form, source)
        unanswered += reading.unanswered
        ignored.update(reading.ignored)
        key = record.key()
        if key in seen:
            dropped["duplicate"] += 1
            continue
        seen.add(key)
        sources.add(source)
        good.append(record)
    if not good:
        raise UserError(f"{path}: holds no usable record: {_reasons(dropped)}")
    return Records(good, dropped, unanswered, ignored, frozenset(sources - {""}))


def _to_json(record: Record) -> list[Any]:
    turns = [(turn.role, turn.text, turn.input, turn.learn) for turn in record.turns]
    return [turns, record.position, record.form, record.source]


def _from_json(value: list[Any]) -> Record:
    turns, *facts = value
    return Record(tuple(Turn(*turn) for turn in turns), *facts)


def weights(path: Path) -> dict[str, float]:
    """Folder -> weight of each source mixed at `path`, as fetch noted it; empty if they aren't weighted."""
    return {part["folder"]: part["weight"] for part in _parts(path) if part["weight"] is not None}


def keep_sample(folder: Path, size: int, seed: int, columns: Columns = None) -> None:
    """Replace the data files in `folder` by one JSON file with at most `size` of their records, drawn by `seed`.

    Where several sources are mixed, each is sampled so. Memory holds a few bytes of each record.
    """
    for part in _sources(folder):
        files = files_at(part)
        spool = Spool[Any](part)
        for file in files:
            for _, raw in raw_records(file, columns):
                if not isinstance(raw, forms.Unreadable):
                    spool.append(raw)
        chosen = random.Random(seed).sample(range(len(spool)), min(size, len(spool)))
        for file in files:
            file.unlink()
        _write_list(part / "sample.json", (spool[index] for index in chosen))


def _write_list(path: Path, values: Iterator[Any]) -> None:
    """Write a JSON list one value at a time, as `json.dumps` with an indent of two spaces would."""
    with whole_file(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as file:
        separator = "["
        for value in values:
            # Escaped, because UTF-8 can't hold half of a surrogate pair.
            indented = json.dumps(value, indent=2).replace("\n", "\n  ")
            file.write(f"{separator}\n  {indented}")
            separator = ","
        file.write("[]" if separator == "[" else "\n]")


def _sources(path: Path) -> list[Path]:
    """The folder of each source mixed at `path`; `path` itself if it is one source."""
    return [path / part["folder"] for part in _parts(path)] or [path]


def _parts(path: Path) -> list[dict]:
    """The notes of fetch about each source mixed at `path`."""
    return provenance(path).get("sources", [])


def _every_raw_record(path: Path, columns: Columns) -> Iterator[tuple[str, Path, int, object]]:
    """The source's folder, the file, the index in it and the raw value of each record."""
    for part in _sources(path):
        for file in files_at(part):
            for index, raw in raw_records(file, columns):
                yield part.name if part != path else "", file, index, raw


def _counted(reason: str, position: str, on_bad_record: str) -> str:
    if on_bad_record == "error":
        raise UserError(
            f"{position}: {forms.EXPLAIN[reason]}; correct the record, or drop such records: -S data.on_bad_record=drop"
        )
    return reason


def _reasons(dropped: Counter[str]) -> str:
    """Why the records were dropped, the most frequent reason first, and that one explained."""
    if not dropped:
        return "the files are empty"
    counts = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
    return f"{counts}; a record {forms.EXPLAIN[dropped.most_common(1)[0][0]]}"
