"""Sets of Alpaca's form in any size, for costs alone: what their records say is nothing.

The lengths of instruction, input and output are those of a record of the demo set, drawn at random; the words are those
of the base model's vocabulary, the frequent ones more often (Zipf's law), so that a word is a token or little more.

    python benchmarks/synthetic.py FILE COUNT

FILE ends in .json, .jsonl, .csv or .parquet. Needs models/base and data/raw (`dvc repro fetch`).
"""

import csv
import json
import random
import sys
from collections.abc import Iterator
from itertools import accumulate, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from finetune import cli, places
from finetune.data.datafiles import files_at, raw_records
from finetune.models.base import Base

COLUMNS = ("instruction", "input", "output")
SEED = 0


def records(count: int) -> Iterator[dict[str, str]]:
    """So many records, the same ones each time; a larger set starts with the records of a smaller one."""
    tokenizer = Base.named(None).tokenizer
    demo = [raw for file in files_at(places.RAW) for _, raw in raw_records(file, None)]
    lengths = [[len(tokenizer(raw[column])["input_ids"]) for column in COLUMNS] for raw in demo]
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [token[1:] for token, _ in vocabulary if token[0] == "Ġ" and token[1:].isascii() and token[1:].isalpha()]
    frequencies = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
    drawn = random.Random(SEED)
    for _ in range(count):
        texts = (" ".join(drawn.choices(words, cum_weights=frequencies, k=length)) for length in drawn.choice(lengths))
        yield dict(zip(COLUMNS, texts, strict=True))


def main() -> None:
    path, count = Path(sys.argv[1]), int(sys.argv[2])
    _WRITERS[path.suffix](path, records(count))
    print(json.dumps({"bytes": path.stat().st_size}))


def _write_json(path: Path, rows: Iterator[dict]) -> None:
    with path.open("w") as file:
        for index, row in enumerate(rows):
            file.write(("[\n" if index == 0 else ",\n") + json.dumps(row))
        file.write("\n]\n")


def _write_jsonl(path: Path, rows: Iterator[dict]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _write_csv(path: Path, rows: Iterator[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(path: Path, rows: Iterator[dict]) -> None:
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema([(column, pyarrow.string()) for column in COLUMNS])
    with parquet.ParquetWriter(path, schema) as writer:
        while batch := list(islice(rows, 10_000)):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema))


_WRITERS = {".json": _write_json, ".jsonl": _write_jsonl, ".csv": _write_csv, ".parquet": _write_parquet}


if __name__ == "__main__":
    cli.run(main)
