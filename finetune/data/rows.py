"""The rows of the dataset on their way to its splits: on the disk, with a few figures of each in memory."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from finetune.data.prepared import IGNORE, SPLITS, prompt_length
from finetune.data.records import Records
from finetune.files import disk_named, existing, sha256, whole_folder, write_yaml
from finetune.places import FACTS

if TYPE_CHECKING:
    import pyarrow
    from datasets import Features

BATCH = 1000
"""Rows that are held and written together, in the dataset as well."""


def _features() -> Features:
    from datasets import Features, List, Value

    return Features(
        {
            "input_ids": List(Value("int32")),
            "labels": List(Value("int32")),
            "truncated": Value("bool"),
            "prompt": Value("string"),
            "reference": Value("string"),
            "record": Value("string"),
        }
    )


class Rows:
    """Rows as they come; which split one belongs to is known only when all are there."""

    def __init__(self, folder: Path, end_token: int) -> None:
        """In a file without a name in `folder`, or the nearest above it that exists. `end_token` ends a response."""
        from pyarrow import ipc

        self.lengths = array("i")
        """Tokens of prompt and response of each row."""
        self.prompt_lengths = array("i")
        """Tokens up to where its last response starts."""
        self.ends_learnt = bytearray()
        """Whether one of its responses ends."""
        self.response_tokens = self.truncated = 0
        self._end_token = end_token
        self._waiting: list[dict] = []
        self._folder = existing(folder)
        self._schema = _features().arrow_schema
        with disk_named(self._folder):
            self._file = tempfile.TemporaryFile(dir=self._folder, suffix=".draft")  # noqa: SIM115
            self._writer = ipc.new_file(self._file, self._schema)

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, row: dict) -> None:
        """Add a row. Raises UserError if the disk is full, or refuses."""
        labels = row["labels"]
        self.lengths.append(len(labels))
        self.prompt_lengths.append(prompt_length(labels))
        self.ends_learnt.append(self._end_token in labels)
        self.response_tokens += len(labels) - labels.count(IGNORE)
        self.truncated += row["truncated"]
        self._waiting.append(row)
        if len(self._waiting) == BATCH:
            self._write()

    def _write(self) -> None:
        import pyarrow

        with disk_named(self._folder):
            self._writer.write_batch(pyarrow.RecordBatch.from_pylist(self._waiting, schema=self._schema))
        self._waiting = []

    def save(self, splits: dict[str, range], facts: dict, folder: Path) -> None:
        """Write the rows as an Arrow `DatasetDict` with `facts` beside it, the same bytes for the same rows.

        No row can be added after that.
        """
        from datasets import Dataset, DatasetDict
        from pyarrow import ipc

        if self._waiting:
            self._write()
        self._writer.close()
        one = Dataset.from_dict(next(self._tables(range(1))).to_pydict(), _features())
        with whole_folder(folder) as draft:
            # What stands beside the rows, by who knows the format; they themselves would have to be in memory for it.
            DatasetDict(dict.fromkeys(SPLITS, one)).save_to_disk(draft)
            for name in SPLITS:
                (target,) = (draft / name).glob("*.arrow")
                with target.open("wb") as file, ipc.new_stream(file, self._schema) as writer:
                    for table in self._tables(splits[name]):
                        writer.write_table(table)
                _steady_fingerprint(draft / name / "state.json", target)
            write_yaml(draft / FACTS, facts)

    def _tables(self, part: range) -> Iterator[pyarrow.Table]:
        """The rows of `part`, `BATCH` at a time."""
        import pyarrow
        from pyarrow import ipc

        self._file.seek(0)
        written = ipc.open_file(self._file)
        for start in range(part.start, part.stop, BATCH):
            stop = min(start + BATCH, part.stop)
            first, last = start // BATCH, (stop - 1) // BATCH
            batches = [written.get_batch(index) for index in range(first, last + 1)]
            rows = pyarrow.Table.from_batches(batches).slice(start - first * BATCH, stop - start)
            # With an empty one, so that even a single part is copied: a view is written with what lies behind its end.
            yield pyarrow.concat_tables([rows, rows.slice(0, 0)]).combine_chunks()


def _steady_fingerprint(state: Path, rows: Path) -> None:
    """datasets puts a fingerprint of the process in state.json; take one of the data instead."""
    value = json.loads(state.read_text())
    value["_fingerprint"] = sha256(rows)[:16]
    state.write_text(json.dumps(value, indent=2, sort_keys=True))


def statistics(
    rows: Rows, splits: dict[str, range], records: Records, dropped: Counter[str], made_of: Counter[str]
) -> dict[str, Any]:
    """Counts and length percentiles (tokens of prompt and response) for metrics/data.json.

    `dropped` and `made_of` are what `sample` counted.
    """
    lengths = numpy.array(rows.lengths)
    facts: dict[str, Any] = {"records_read": len(records.good) + records.dropped.total(), "records_kept": len(rows)}
    facts |= {f"{name}_records": len(splits[name]) for name in SPLITS}
    facts |= dict(sorted(made_of.items()))
    facts |= {f"dropped_{reason}": count for reason, count in sorted((records.dropped + dropped).items())}
    facts |= {"unanswered_turns": records.unanswered} if records.unanswered else {}
    facts |= {f"ignored_column_{name}": count for name, count in sorted(records.ignored.items())}
    facts |= {f"length_p{q}": round(float(numpy.percentile(lengths, q)), 1) for q in (50, 90, 99)}
    facts |= {
        "length_max": int(lengths.max()),
        "tokens": int(lengths.sum()),
        "response_tokens": rows.response_tokens,
        "truncated_share": round(rows.truncated / len(rows), 4),
    }
    return facts
