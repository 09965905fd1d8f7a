"""The data files of a folder, and the raw records in each; what can't be read is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data import forms, texts
from finetune.data.forms import Unreadable
from finetune.data.tables import read_table
from finetune.data.texts import BLOCK, DuplicateKey, JsonText, NotJson, blocks, lines
from finetune.errors import UserError, quoted
from finetune.sources.catalogue import DATA_SUFFIXES, data_files, data_suffix

if TYPE_CHECKING:
    from pyarrow import Array

Columns = dict[str, str] | None

_ROWS = 1000
"""Rows of a Parquet file that are held at a time."""


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

    The file is read as its records are consumed, so that only a few are held at a time. Raises UserError if the file
    as a whole can't be read, after the records before the fault.
    """
    kind = data_suffix(file).removesuffix(".gz")
    yield from enumerate(_READERS[kind](file, columns))


def _json_line(text: str) -> Any:
    """The JSON value in `text`, or Unreadable."""
    try:
        return texts.loads(text)
    except DuplicateKey:
        return Unreadable("duplicate_key")
    except RecursionError:
        return Unreadable("too_deep")
    except ValueError:
        return Unreadable("broken_line")


@contextmanager
def _faults_of(file: Path) -> Iterator[None]:
    """Turn what is wrong with the JSON that the block reads into a UserError about the file."""
    try:
        yield
    except RecursionError:
        raise UserError(f"{file}: is nested too deeply to be read; give a list of records") from None
    except DuplicateKey:
        raise UserError(
            f"{file}: holds an object with the same key twice, so that one of the values would be lost; rename one"
        ) from None
    except NotJson as fault:
        raise UserError(
            f"{file}: not valid JSON at line {fault.line}, column {fault.column}: {fault.what}; "
            f"correct it, or fetch it again if it was cut off"
        ) from None
    except ValueError:  # Python's limit on the digits of a whole number
        raise UserError(f"{file}: holds a number of too many digits; write it as text") from None


def _read_json(file: Path, columns: Columns) -> Iterator[Any]:
    """A list of records, an object around one, or one record a line under a name that says otherwise."""
    text = JsonText(blocks(file))
    opening = text.peek()
    with _faults_of(file):
        if opening == "[":
            yield from text.elements()
            text.end()
        elif opening == "{":
            yield from _read_object(file, columns)
        else:
            value = text.value()
            text.end()
            raise _no_list(file, value)


def _read_object(file: Path, columns: Columns) -> Iterator[Any]:
    """The records in the one list of the file's object; or, if the file holds an object a line, each line's.

    The object is read twice, because only at its end is it known whether its list is one of records.
    """
    try:
        name = _list_of_records(file, _members(file))
    except ValueError as error:
        if isinstance(error, DuplicateKey) or not isinstance(_json_line(_first_line(file)), dict):
            raise
        yield from _read_jsonl(file, columns)
        return
    text = JsonText(blocks(file))
    for key in text.members():
        if key == name:
            yield from text.elements()
        else:
            text.value()


def _members(file: Path) -> dict[str, bool | None]:
    """Key -> whether its value is a list of objects, None if it's no list, of the object in the file."""
    text = JsonText(blocks(file))
    found: dict[str, bool | None] = {}
    for key in text.members():
        if text.peek() != "[":
            text.value()
            found[key] = None
        else:
            found[key] = True
            for item in text.elements():
                found[key] = found[key] and isinstance(item, dict)
    text.end()
    return found


def _list_of_records(file: Path, members: dict[str, bool | None]) -> str:
    """The key of the one list in an object with such `members`. Raises UserError if there are several, or none."""
    lists = [key for key, of_objects in members.items() if of_objects is not None]
    if forms.MARKERS.isdisjoint(members):  # a single record may hold lists as well
        if len(lists) > 1:
            raise UserError(
                f"{file}: holds several lists ({', '.join(map(quoted, lists))}); put the records of one of them into a file of its own"
            )
        if lists and members[lists[0]]:
            return lists[0]
    raise _no_list(file, {})


def _no_list(file: Path, value: Any) -> UserError:
    kinds = {dict: "an object", str: "a text", bool: "true or false", type(None): "null"}
    return UserError(
        f"{file}: must hold a list of records, [{{…}}, {{…}}], got {kinds.get(type(value), 'a number')}; "
        f"write it as such a list, or one record a line"
    )


def _read_jsonl(file: Path, columns: Columns) -> Iterator[Any]:
    """One record a line, or a list of them under a name that says otherwise."""
    if JsonText(blocks(file)).peek() == "[" and _is_one_list(file):
        yield from JsonText(blocks(file)).elements()
        return
    # Not `str.splitlines`, which would also split inside strings, at U+2028.
    for line in lines(file, "\n"):
        if record := line.strip("\ufeff \t\r\n"):
            yield _json_line(record)


def _is_one_list(file: Path) -> bool:
    """Whether the file's text is one JSON list, not a list a line."""
    text = JsonText(blocks(file))
    try:
        for _ in text.elements():
            pass
        text.end()
    except (ValueError, RecursionError):
        return False
    return True


def _first_line(file: Path) -> str:
    return next((line for line in lines(file, "\n") if line.strip()), "")


def _column(column: Array, *, read: bool) -> list[Any]:
    """A column's values; of one that isn't read, only whether each is there: Python may have no type for them."""
    return column.to_pylist() if read else [True if there else None for there in column.is_valid().to_pylist()]


def _read_parquet(file: Path, columns: Columns) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    known = {*forms.COLUMNS, *(columns or {}).values()}
    try:
        # Not `read_table`, which adds columns that it takes from a path such as lang=en/a.parquet. Without a buffer, a
        # whole row group, which may be the file, would be read before it is decoded.
        table = parquet.ParquetFile(file, buffer_size=BLOCK)
        names = table.schema_arrow.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"{file}: has the column {quoted(twice[0])} twice; rename one of the two")
        for batch in table.iter_batches(_ROWS):
            values = {name: _column(batch.column(name), read=forms.is_known(name, known)) for name in names}
            yield from ({name: values[name][row] for name in names} for row in range(batch.num_rows))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{file}: not a Parquet file that can be read: {' '.join(str(error).split())[:200]}") from None


_READERS: dict[str, Callable[[Path, Columns], Iterator[Any]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": read_table,
    ".tsv": read_table,
    ".parquet": _read_parquet,
}
