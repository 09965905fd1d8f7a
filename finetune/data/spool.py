"""Texts put aside on the disk in the order in which they come, and read back one at a time in any order."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path

from finetune.data.turns import Record, Turn
from finetune.files import disk_named, existing


class Spool:
    """A sequence of texts that takes 8 bytes of memory for each."""

    def __init__(self, folder: Path | None = None) -> None:
        """In a file without a name in `folder`, or the nearest above it that exists; by default in the system's place
        for temporary ones. Nothing stays of it, whatever ends the process."""
        self._folder = existing(folder) if folder else Path(tempfile.gettempdir())
        with disk_named(self._folder):
            self._file = tempfile.TemporaryFile(dir=self._folder, suffix=".draft")  # noqa: SIM115
        self._ends = array("Q", [0])
        self._reading = False

    def append(self, text: str) -> None:
        """Add a text. Raises UserError if the disk is full, or refuses."""
        # Half of a surrogate pair may stand in a file's name.
        content = text.encode(errors="surrogatepass")
        with disk_named(self._folder):
            if self._reading:
                self._file.seek(0, os.SEEK_END)
                self._reading = False
            self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        with disk_named(self._folder):
            self._file.seek(self._ends[index])
            self._reading = True
            content = self._file.read(self._ends[index + 1] - self._ends[index])
        return content.decode(errors="surrogatepass")


class StoredRecords:
    """Records in a spool."""

    def __init__(self, folder: Path | None = None) -> None:
        """As `Spool` takes it."""
        self._spool = Spool(folder)

    def append(self, record: Record) -> None:
        """Add a record. Raises UserError if the disk is full, or refuses."""
        turns = [(turn.role, turn.text, turn.input, turn.learn) for turn in record.turns]
        self._spool.append(json.dumps((turns, record.position, record.form, record.source), ensure_ascii=False))

    def __len__(self) -> int:
        return len(self._spool)

    def __getitem__(self, index: int) -> Record:
        turns, *facts = json.loads(self._spool[index])
        return Record(tuple(Turn(*turn) for turn in turns), *facts)

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))
