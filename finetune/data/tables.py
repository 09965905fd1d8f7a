"""CSV and TSV read strictly: what doesn't add up to a table is said, never guessed away."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.data.forms import COLUMNS, Unreadable
from finetune.errors import UserError

DELIMITERS = (",", "\t", ";", "|")

_SWALLOWED = 3
"""So many lines in the midst of one cell, each of them a whole row by itself, are an unclosed quote's doing."""

_LARGEST_CELL = 2**31 - 1
"""Python's csv refuses a cell above 131,072 characters by default; a C long on Windows has 32 bits."""


def read_table(file: Path, text: str, columns: dict[str, str] | None) -> Iterator[dict[str, Any] | Unreadable]:
    """Rows as dicts from column to text; a row that isn't one comes as Unreadable.

    Raises UserError for a first line that names no known column or one twice, and for quotes that don't close.
    """
    csv.field_size_limit(_LARGEST_CELL)
    known = {*COLUMNS, *(columns or {}).values()}
    delimiter = _delimiter(text, known)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    started = 1
    try:
        for row in rows:
            _check_no_row_was_swallowed(file, row, delimiter, started)
            started = rows.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            names = [cell.strip().lstrip("\ufeff").strip('"') for cell in row]
            if header is None:
                header = _checked_header(file, names, known)
            elif names == header:
                yield Unreadable("repeated_header")
            elif len(row) != len(header):
                yield Unreadable("ragged_row")
            else:
                yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{file}: not valid CSV in the record that starts at line {started}: {error}; a quote there isn't closed, "
            f"or one within a cell isn't doubled"
        ) from None


def _delimiter(text: str, known: set[str]) -> str:
    """The delimiter under which the first line names the most known columns; a comma if none does."""
    first = next((line for line in text.splitlines() if line.strip()), "")

    def named(delimiter: str) -> int:
        return sum(cell.strip().strip('"') in known for cell in first.split(delimiter))

    return max(DELIMITERS, key=named)


def _checked_header(file: Path, names: list[str], known: set[str]) -> list[str]:
    if not known & set(names):
        raise UserError(
            f"{file}: its first line names no column that is known ({', '.join(sorted(known))}); put the columns' names "
            f"there, or name your own with -S 'data.columns={{instruction: …, output: …}}'"
        )
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise UserError(f"{file}: its first line names the column {twice[0]!r} twice; rename one of the two")
    return names


def _check_no_row_was_swallowed(file: Path, row: list[str], delimiter: str, started: int) -> None:
    for cell in row:
        within = cell.splitlines()[1:-1]
        if len(within) >= _SWALLOWED and len(row) > 1 and all(_is_a_row(line, len(row), delimiter) for line in within):
            raise UserError(
                f"{file}: the record that starts at line {started} has a cell that holds {len(within)} whole rows, so a "
                f"quote before them isn't closed; close it, or give the file as JSON if the cell is meant so"
            )


def _is_a_row(line: str, cells: int, delimiter: str) -> bool:
    try:
        return [len(row) for row in csv.reader([line], delimiter=delimiter, strict=True)] == [cells]
    except csv.Error:
        return False
