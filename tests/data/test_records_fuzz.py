"""Whatever lies in a data file, and whatever is typed: a result, or a UserError of one line."""

import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.commands.escapes import unescape
from finetune.data import alpaca
from finetune.data.forms import COLUMNS, EXPLAIN
from finetune.data.records import read_records
from finetune.errors import UserError

SUFFIXES = ["json", "jsonl", "csv", "tsv", "json.gz", "csv.gz", "parquet"]
NAMES = [*COLUMNS, "Instruction", "role", "content", "from", "value", "weight", "tool_calls", "id", ""]

words = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["user", "assistant", "human", "gpt", "system", "", " ", "\0", "\ud83d", "[{", "[]", "\ufeff", "NaN"]
    ),
)
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words)
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | words, inner, max_size=4),
    max_leaves=10,
)
messages = st.lists(
    st.fixed_dictionaries({"role": words, "content": words | plain}, optional={"weight": plain, "from": words}),
    max_size=5,
)
records = st.one_of(
    st.fixed_dictionaries(
        {"instruction": words, "output": words}, optional={"input": plain, "system": plain, "history": values}
    ),
    st.fixed_dictionaries({"messages": messages}, optional={"tools": plain}),
    st.fixed_dictionaries({"conversations": messages | values}),
    st.fixed_dictionaries({"prompt": words | messages, "completion": words | messages}),
    values,
)
tables = st.lists(
    st.sampled_from(
        ["instruction", "output", "input", "a", '"', '""', ",", "\t", ";", "\n", "\r\n", "\r", "sep=;\n", "\0"]
    ),
    max_size=40,
).map("".join)
columns = st.none() | st.dictionaries(st.sampled_from(COLUMNS), st.text(min_size=1, max_size=5), max_size=3)
OFTEN = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), max_examples=150)
LONG = settings(OFTEN, max_examples=20_000)


def read(folder: Path, suffix: str, content: bytes, on_bad_record: str, own: dict | None) -> None:
    file = folder / f"a.{suffix}"
    file.write_bytes(gzip.compress(content, mtime=0) if suffix.endswith("gz") else content)
    try:
        found = read_records(file, on_bad_record, own)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert found.good and set(found.dropped) <= {*EXPLAIN, "duplicate"}
        for record in found.good:
            assert record.turns[-1].role == "assistant" and record.turns[-1].learn
            assert any(turn.role == "user" for turn in record.turns)
            for turn in record.turns:
                assert turn.text == turn.text.strip() and turn.text
                turn.content.encode()
        "".join(found.ignored).encode()


def dumped(rows: list, lines: bool) -> bytes:
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    return text.encode()


def damaged(content: bytes, at: int, end: int, patch: bytes) -> bytes:
    at = at % (len(content) + 1)
    return content[:at] + patch + content[at + end :]


BAD = st.sampled_from(["drop", "error"])
PATCH = st.binary(max_size=3) | st.sampled_from(
    [b'"', b"{", b"[", b"\\u", b"\\ud800", b",", b"\xff\xfe", b"\xef\xbb\xbf"]
)


def try_records(folder, rows, lines, on_bad_record, own):
    for suffix in ("json", "jsonl", "json.gz"):
        read(folder, suffix, dumped(rows, lines), on_bad_record, own)


def try_damaged(folder, rows, lines, at, end, patch):
    for suffix in ("json", "jsonl"):
        read(folder, suffix, damaged(dumped(rows, lines), at, end, patch), "drop", None)


def try_parquet(folder, rows, at, end, patch):
    import pyarrow
    from pyarrow import parquet

    try:
        table = pyarrow.Table.from_pylist([row for row in rows if isinstance(row, dict)])
        parquet.write_table(table, whole := io.BytesIO())
    except (pyarrow.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
        return  # nothing that a file could hold
    read(folder, "parquet", whole.getvalue(), "drop", None)
    read(folder, "parquet", damaged(whole.getvalue(), at, end, patch), "drop", None)


def try_table(folder, text, own, header):
    names = f"{header}\n" if header else ""
    for suffix in ("csv", "tsv", "csv.gz"):
        read(folder, suffix, f"{names}{text}".encode(), "drop", own)


def try_typed(text):
    try:
        found = unescape(text)
    except UserError as error:
        assert "\n" not in str(error)
        return
    found.encode()
    instruction, context = alpaca.parse(found)
    # Nothing of what was typed is lost but headings, a preamble and white space at the ends.
    assert instruction in found and context in found
    if "### " not in found:
        assert (instruction, context) == (found.strip(), "")


ROWS = st.lists(records, max_size=5)
HEADERS = st.sampled_from(["", "instruction,input,output", "instruction;output", "prompt\tcompletion"])
TYPED = st.lists(
    words
    | st.sampled_from(["### Instruction:", "### Input:", "### Response:", "\n", " ", '"', "\udce9"])
    | st.sampled_from(["\\n", "\\u00e9", "\\ud83d", "\\ude00", "\\U0001F600", "\\x41", "\\theta", "\\"])
    | st.sampled_from(["C:\\new", "\\\\host\\new"]),
    max_size=8,
).map("".join)
POSITIONS = (st.integers(0, 10**4), st.integers(0, 9), PATCH)


@OFTEN
@given(rows=ROWS, lines=st.booleans(), on_bad_record=BAD, own=columns)
def test_any_records(tmp_path_factory, rows, lines, on_bad_record, own):
    try_records(tmp_path_factory.getbasetemp(), rows, lines, on_bad_record, own)


@OFTEN
@given(ROWS, st.booleans(), *POSITIONS)
def test_damaged_json(tmp_path_factory, rows, lines, at, end, patch):
    try_damaged(tmp_path_factory.getbasetemp(), rows, lines, at, end, patch)


@OFTEN
@given(tables, columns, HEADERS)
def test_any_table(tmp_path_factory, text, own, header):
    try_table(tmp_path_factory.getbasetemp(), text, own, header)


@OFTEN
@given(st.sampled_from(SUFFIXES), st.binary(max_size=60))
def test_any_bytes(tmp_path_factory, suffix, content):
    read(tmp_path_factory.getbasetemp(), suffix, content, "drop", None)


@settings(OFTEN, max_examples=60)
@given(ROWS, *POSITIONS)
def test_any_parquet(tmp_path_factory, rows, at, end, patch):
    try_parquet(tmp_path_factory.getbasetemp(), rows, at, end, patch)


@settings(OFTEN, max_examples=500)
@given(TYPED)
def test_any_typed_prompt(text):
    try_typed(text)


@pytest.mark.slow
@LONG
@given(ROWS, st.booleans(), BAD, columns, *POSITIONS)
def test_many_records(tmp_path_factory, rows, lines, on_bad_record, own, at, end, patch):
    folder = tmp_path_factory.getbasetemp()
    try_records(folder, rows, lines, on_bad_record, own)
    try_damaged(folder, rows, lines, at, end, patch)


@pytest.mark.slow
@LONG
@given(tables, columns, HEADERS, st.sampled_from(SUFFIXES), st.binary(max_size=200), TYPED)
def test_many_tables_bytes_and_prompts(tmp_path_factory, text, own, header, suffix, content, typed):
    folder = tmp_path_factory.getbasetemp()
    try_table(folder, text, own, header)
    read(folder, suffix, content, "drop", None)
    try_typed(typed)
