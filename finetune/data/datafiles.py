"""Data files in: which of a folder's files hold records, and the raw records of each, with what can't be read named."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data import forms
from finetune.data.forms import Unreadable
from finetune.data.tables import read_table
from finetune.errors import UserError, quoted
from finetune.sources.catalogue import DATA_SUFFIXES, data_files, data_suffix

if TYPE_CHECKING:
    from pyarrow import ChunkedArray

Columns = dict[str, str] | None


def files_at(path: Path) -> list[Path]:
    """The data files at `path` (file or folder), in the order of their names. Raises UserError if there are none."""
    if path.is_file():
        if not data_suffix(path):
            raise UserError(f"{path}: unknown kind of file; give one of {', '.join(DATA_SUFFIXES)}")
        return [path]
    files = data_files(path)
    if not files:
        raise UserError(f"{path}: no {', '.join(DATA_SUFFIXES)} file there; run `python stages/fetch.py` first")
    return files


def raw_records(file: Path, columns: Columns) -> Iterator[tuple[int, Any]]:
    """Index from 0 and raw value of each record; one that can't be read comes as Unreadable.

    Raises UserError if the file as a whole can't be read.
    """
    kind = data_suffix(file).removesuffix(".gz")
    if kind == ".parquet":
        yield from enumerate(_read_parquet(file, columns))
        return
    text = _text(file)
    if not text.strip():
        raise UserError(f"{file}: is empty; give a file with records, or take it away")
    yield from enumerate(_READERS[kind](file, text, columns))


def _text(file: Path) -> str:
    """The file's text, decompressed; UTF-8 with or without a byte-order mark, or UTF-16 with one."""
    content = _bytes(file)
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text at byte {error.start}; save it as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{file}: holds a NUL character, so it is no text or not UTF-8; save it as UTF-8")
    return text


def _bytes(file: Path) -> bytes:
    content = file.read_bytes()
    if data_suffix(file).endswith(".gz"):
        try:
            return gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{file}: can't be decompressed ({error}); it is damaged or no gzip file") from None
    return content


class _DuplicateKey(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python's json keeps the last of two values under one key, without a word."""
    if len(dict(pairs)) < len(pairs):
        raise _DuplicateKey
    return dict(pairs)


def _json_value(text: str) -> Any:
    """The JSON value in `text`, or Unreadable."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except _DuplicateKey:
        return Unreadable("duplicate_key")
    except RecursionError:
        return Unreadable("too_deep")
    except ValueError:
        return Unreadable("broken_line")


def _read_json(file: Path, text: str, columns: Columns) -> Iterator[Any]:
    """A list of records, an object around one, or one record a line under a name that says otherwise."""
    value = _json_value(text)
    if value == Unreadable("broken_line") and isinstance(_json_value(_first_line(text)), dict):
        yield from _read_jsonl(file, text, columns)
        return
    if isinstance(value, Unreadable):
        raise UserError(f"{file}: {_why_no_json(text, value.reason)}")
    yield from _records(file, value)


def _why_no_json(text: str, reason: str) -> str:
    if reason == "too_deep":
        return "is nested too deeply to be read; give a list of records"
    if reason == "duplicate_key":
        return "holds an object with the same key twice, so that one of the values would be lost; rename one"
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return (
            f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}; "
            f"mend it, or fetch it again if it was cut off"
        )
    except ValueError:  # Python's limit on the digits of a whole number
        pass
    return "holds a number of too many digits; write it as text"


def _records(file: Path, value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    lists = [key for key, inner in value.items() if isinstance(inner, list)] if isinstance(value, dict) else []
    if len(lists) == 1 and all(isinstance(item, dict) for item in value[lists[0]]) and not _is_a_record(value):
        return value[lists[0]]
    if len(lists) > 1 and not _is_a_record(value):
        raise UserError(
            f"{file}: holds several lists ({', '.join(map(quoted, lists))}); put the records of one of them into a file of its own"
        )
    kinds = {dict: "an object", str: "a text", bool: "true or false", type(None): "null"}
    raise UserError(
        f"{file}: must hold a list of records, [{{…}}, {{…}}], got {kinds.get(type(value), 'a number')}; "
        f"write it as such a list, or one record a line"
    )


def _is_a_record(value: dict[str, Any]) -> bool:
    """Whether an object is one record rather than a wrapper around a list of them."""
    return not {"messages", "conversations", "prompt", "instruction"}.isdisjoint(value)


def _read_jsonl(file: Path, text: str, columns: Columns) -> Iterator[Any]:
    """One record a line, or a list of them under a name that says otherwise."""
    if text.lstrip().startswith("["):
        value = _json_value(text)
        if isinstance(value, list):
            yield from value
            return
    # Not `str.splitlines`, which would also split inside strings, at U+2028.
    for line in text.split("\n"):
        if line.strip("\ufeff \t\r"):
            yield _json_value(line.strip("\ufeff \t\r"))


def _first_line(text: str) -> str:
    return next((line for line in text.split("\n") if line.strip()), "")


def _column(column: ChunkedArray, *, read: bool) -> list[Any]:
    """A column's values; of one that isn't read only whether there is one, since Python may have no such value."""
    return column.to_pylist() if read else [True if there else None for there in column.is_valid().to_pylist()]


def _read_parquet(file: Path, columns: Columns) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    known = {*forms.COLUMNS, *(columns or {}).values()}
    try:
        # Not `read_table`, which adds columns that it reads out of a path such as lang=en/a.parquet.
        table = parquet.ParquetFile(file).read()
        names = table.column_names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"{file}: has the column {quoted(twice[0])} twice; rename one of the two")
        values = {name: _column(table[name], read=forms.is_known(name, known)) for name in names}
        yield from ({name: values[name][row] for name in names} for row in range(table.num_rows))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{file}: not a Parquet file that can be read: {' '.join(str(error).split())[:200]}") from None


_READERS: dict[str, Callable[[Path, str, Columns], Iterator[Any]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": read_table,
    ".tsv": read_table,
}
