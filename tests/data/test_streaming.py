"""Data are read in batches: what comes out does not depend on the size of a batch, and few records are in memory at once."""

import csv
import gzip
import hashlib
import io
import json
import tracemalloc
from itertools import pairwise

import pytest
from datasets import load_from_disk
from helpers import stage, write_params

from finetune.data import datafiles, dataset, prepared, records, rows, texts
from finetune.errors import UserError
from finetune.kernels import loss

ROWS = [
    {"instruction": f"Say {n} é 漢\u2028😀 \\ud83d", "input": "a\r\nb" * (n % 3), "output": f'It\'s "{n}", {n / 7}.'}
    for n in range(60)
]


def table() -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]))
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue()


LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
FILES = {
    "list.json": json.dumps(ROWS, indent=1),
    "escaped.json": json.dumps([*ROWS, 1.5, -2e7, True, None, "x", [1.25, []], {}], ensure_ascii=True),
    "within.json": json.dumps({"version": [1.5, {"a": "]"}][0], "data": ROWS, "n": 12.5}),
    "lines.json": LINES,
    "lines.jsonl": LINES + '\n\n{"broken": \n[1]\n',
    "list.jsonl": json.dumps(ROWS, ensure_ascii=False, indent=2),
    "table.csv": table(),
    "excel.csv": "sep=,\r\n\r\n" + table(),
    "mac.csv": table().replace("\r\n", "\r"),
    "not.json": json.dumps(ROWS)[:-1] + ",]",
    "cut.json": json.dumps(ROWS)[:-9],
    "twice.json": json.dumps(ROWS)[:-1] + ', {"a": 1, "a": 2}]',
    "two.json": json.dumps(ROWS) + "\n [",
    "open.csv": table() + 'x,"y,z\r\n' + table(),
}


def read(file) -> tuple[list, str]:
    """The records of a file, and the sentence about its fault."""
    found: list = []
    try:
        for _, raw in datafiles.raw_records(file, None):
            found.append(raw)
    except UserError as error:
        return found, str(error)
    return found, ""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", FILES)
def test_the_records_do_not_depend_on_the_size_of_a_block(tmp_path, monkeypatch, name, encoding):
    (tmp_path / name).write_bytes(FILES[name].encode(encoding))
    whole = read(tmp_path / name)
    for block in (4, 50, 1000):
        monkeypatch.setattr(texts, "BLOCK", block)
        assert read(tmp_path / name) == whole
    good = name.split(".")[0] not in ("not", "cut", "twice", "two", "open")
    assert bool(whole[1]) != good
    if good and name != "mac.csv":  # whose cells have other line ends
        assert whole[0][: len(ROWS)] == ROWS


def test_a_fault_far_into_a_file_is_placed_as_json_itself_places_it(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "BLOCK", 100)
    for name in ("not.json", "cut.json", "two.json"):
        (tmp_path / name).write_text(FILES[name])
        with pytest.raises(json.JSONDecodeError) as expected:
            json.loads(FILES[name])
        error = expected.value
        assert f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg};" in read(tmp_path / name)[1]
    (tmp_path / "latin.csv").write_bytes((table() * 3).encode() + b"caf\xe9,,")
    assert f"not UTF-8 text at byte {len((table() * 3).encode()) + 3};" in read(tmp_path / "latin.csv")[1]


@pytest.mark.parametrize("name", ["list.json", "list.json.gz", "within.json", "lines.jsonl", "list.jsonl", "table.csv"])
def test_a_file_is_read_no_further_than_its_records_are_asked_for(tmp_path, monkeypatch, name):
    content = FILES[name.removesuffix(".gz")].encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    monkeypatch.setattr(texts, "BLOCK", 256)
    taken, blocks = [0], texts._bytes

    def counted(file):
        taken[0] = 0  # what is opened anew is read from its start
        for part in blocks(file):
            taken[0] += len(part)
            yield part

    monkeypatch.setattr(texts, "_bytes", counted)
    for index, _ in datafiles.raw_records(tmp_path / name, None):
        assert taken[0] <= (index + 1) * len(content) / len(ROWS) + 1024
        if index == len(ROWS) - 1:
            break
    assert taken[0] > len(content) / 2


def test_a_parquet_file_is_read_a_batch_of_rows_at_a_time(tmp_path, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    monkeypatch.setattr(datafiles, "_ROWS", 7)
    sizes, column = [], datafiles._column
    monkeypatch.setattr(datafiles, "_column", lambda part, read: sizes.append(len(part)) or column(part, read=read))
    assert read(tmp_path / "a.parquet") == (ROWS, "")
    assert max(sizes) == 7


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    """6 MB of records through reading, deduplication and sampling; a record leaves a hash and a place, 100 bytes."""
    monkeypatch.setattr(texts, "BLOCK", 2**14)
    with (tmp_path / "a.jsonl").open("w") as file:
        for n in range(3000):
            file.write(json.dumps({"instruction": f"Say {n % 2990}.", "output": "word " * 400}) + "\n")
    tracemalloc.start()
    found = records.read_records(tmp_path / "a.jsonl", "error", folder=tmp_path)
    records.keep_sample(tmp_path, 2500, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.good) == 2990 and found.dropped == {"duplicate": 10}
    assert found.good[2989].turns[0].text == "Say 2989."
    assert len(json.loads((tmp_path / "sample.json").read_text())) == 2500
    assert peak < 1_600_000


def test_losses_are_computed_a_pass_at_a_time(tiny_models, monkeypatch):
    taken, seen = [0], []

    def source():
        for n in range(40):
            taken[0] += 1
            yield {"input_ids": [1] * (5 + n % 4), "labels": [1] * (5 + n % 4)}

    class Model:
        device = "cpu"
        eval = staticmethod(lambda: None)

    def losses_of(model, part, count):
        seen.append((taken[0], int(part["lengths"].sum())))
        return [loss.SequenceLoss(1.0, 1)] * count

    monkeypatch.setattr(loss, "losses_of", losses_of)
    assert len(loss.sequence_losses(Model(), source(), 16)) == 40
    assert seen[0][0] <= 4 and all(later - earlier <= 3 for (earlier, _), (later, _) in pairwise(seen))


@pytest.fixture
def prepare(workspace, tiny_models):
    """Prepare three weighted sources, of which one has prompts that are too long; every row of the splits."""
    raw = workspace / "data/raw"
    (raw / "words.json").unlink()
    parts = []
    for number, weight in enumerate((3, 1, 2)):
        (raw / f"s{number}").mkdir()
        listed = [
            {"instruction": f"{number} {n} " + "word " * (60 if n % (2 + number) == 0 else 1), "output": f"It is {n}."}
            for n in range(50)
        ]
        (raw / f"s{number}/a.json").write_text(json.dumps(listed))
        parts.append({"folder": f"s{number}", "weight": weight, "source": "s", "licence": "l"})
    (raw / "facts.yaml").write_text(json.dumps({"source": "s", "licence": "l", "sources": parts}))
    write_params(workspace, data={"size": 70, "max_length": 160, "validation": 0.2, "test": 0.3})

    def run() -> tuple[dict, dict, dict]:
        stage("prepare", "--model_name", tiny_models["llama"])
        splits = load_from_disk(str(workspace / "data/prepared"))
        return (
            splits,
            {name: list(split) for name, split in splits.items()},
            json.loads((workspace / "metrics/data.json").read_text()),
        )

    return run


def test_the_sample_and_its_rows_are_those_of_one_record_at_a_time(prepare, monkeypatch):
    _, at_once, counts = prepare()
    assert counts["dropped_prompt_too_long"] > 5 and counts["source_s1"] == 12
    monkeypatch.setattr(dataset, "BATCH", 1)
    monkeypatch.setattr(rows, "BATCH", 7)
    splits, one_by_one, same = prepare()
    assert (one_by_one, same) == (at_once, counts)
    assert len(splits["train"]) > 14


@pytest.mark.parametrize(
    "choose",
    [
        lambda split: split,
        lambda split: split.filter(lambda row: len(row["input_ids"]) % 3),
        lambda split: split.select([5, 2, 9]),
        lambda split: split.select(range(3, 20)),
        lambda split: split.shuffle(seed=1),
        lambda split: split.sort("record", reverse=True),
    ],
    ids=["whole", "filtered", "selected", "sliced", "shuffled", "sorted"],
)
def test_lengths_and_tokens_are_those_of_the_rows_however_the_split_was_made(prepare, monkeypatch, choose):
    """A filtered, selected or shuffled split is another table and a list of its rows; `.data` hands out that table."""
    monkeypatch.setattr(prepared, "_BATCH", 7)
    split = choose(prepare()[0]["train"])
    ids = split["input_ids"][:]
    assert prepared.lengths(split) == list(map(len, ids))
    ordered = sorted(ids, key=len)
    assert prepared.extremes(split) == [ordered[0], ordered[-1]]
    assert prepared.highest_token(split) == max(map(max, ids))


def test_the_prepared_rows_are_those_that_were_prepared_before_records_were_streamed(prepare):
    """The hashes are those of the rows of version 0.2.0, which were made with all records in memory."""
    _, found, _ = prepare()
    digests = {name: hashlib.sha256(json.dumps(split).encode()).hexdigest()[:16] for name, split in found.items()}
    assert digests == {"train": "a5ce4914898f39e1", "validation": "655a31716280cfd7", "test": "76e03f9eb4cfa2e4"}
