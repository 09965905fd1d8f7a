"""What was measured, a file for each part, written after every measurement; and how much time is left."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from finetune import files
from finetune.errors import UserError

Outcome = dict[str, Any]
"""What a measurement came to; or {"skipped": why}, {"failed": how}, {"out_of_memory": True}."""


class Skipped(Exception):
    """Raised, with the reason, where a measurement makes no sense on this machine."""


class Results:
    """The measurements of a part, by key, kept in a folder."""

    def __init__(self, folder: Path, part: str, machine: dict[str, Any]) -> None:
        """Continues from what is there. Raises UserError if that was measured on another `machine`."""
        self._path = folder / f"{part}.json"
        self._machine = machine
        self.done: dict[str, Outcome] = {}
        if self._path.exists():
            before = files.read_json(self._path)
            self.done = before.pop("measurements")
            if before != machine:
                other = ", ".join(key for key in machine if before.get(key) != machine[key])
                raise UserError(
                    f"{self._path}: was measured elsewhere (another {other}); give another folder as --out, or remove it"
                )
        # What failed, or waited for a package, is tried again.
        self.done = {key: one for key, one in self.done.items() if not {"failed", "skipped"} & one.keys()}

    def put(self, key: str, outcome: Outcome) -> None:
        """Add a measurement, and write all."""
        self.done[key] = outcome
        self._path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(self._path, self._machine | {"measurements": self.done})

    @property
    def failures(self) -> list[str]:
        return [f"{key}: {one['failed']}" for key, one in self.done.items() if "failed" in one]


class Budget:
    """The minutes that may be spent."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        """In seconds."""
        return self._end - time.monotonic()
