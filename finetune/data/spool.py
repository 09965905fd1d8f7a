"""Values kept on the disk in the order in which they come, and read back one at a time in any order."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from finetune.files import disk_named, existing

Value = TypeVar("Value")


class Spool(Generic[Value]):
    """A sequence of values of which memory holds 8 bytes each.

    They lie as JSON in a file that has no name, so nothing of it stays, however the process ends.
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
