"""CSV and TSV read strictly: what isn't a well-formed table is refused, never guessed."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from finetune.data import forms
from finetune.data.forms import COLUMNS, Unreadable
from finetune.data.texts import lines
from finetune.errors import UserError, quoted

DELIMITERS = (",", "\t", ";", "|")

_SWALLOWED = 2
"""This many lines within one cell, each of them a whole row by itself, mean that a quote isn't closed."""

_EXCELS_LINE = re.compile(r"\A\ufeff?sep=.\r?\n")
"""Excel's first line, which names the delimiter; the header shows it as well."""

_LARGEST_CELL = 2**24
"""Characters. Python's csv refuses a cell above 131,072 by default; without a limit, an open quote at the start of a large
file would turn all of it into one cell in memory."""


def read_table(file: Path, columns: dict[str, str] | None) -> Iterator[dict[str, Any] | Unreadable]:
    """Each row as a dict from column to text; a row that doesn't fit the header comes as Unreadable.

    Raises UserError for a first line that names no known column, or one twice, and for quotes that aren't closed.
    """
    csv.field_size_limit(_LARGEST_CELL)
    known = {*COLUMNS, *(columns or {}).values()}
    text = lines(file, "")
    head = _head(text)
    delimiter = _delimiter(head, known)
    rows = csv.reader(chain(head, text), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    started = 1
    try:
        for row in rows:
            _check_no_row_was_swallowed(file, row, len(header or row), delimiter, started)
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


def _head(text: Iterator[str]) -> list[str]:
    """Read the lines up to the first that isn't blank, without Excel's own."""
    first = next(text, "")
    head = [] if _EXCELS_LINE.fullmatch(first) else [first]
    while not "".join(head).strip() and (line := next(text, "")):
        head.append(line)
    return head


def _delimiter(head: list[str], known: set[str]) -> str:
    """The delimiter under which the first line names the most known columns; a comma if none does."""
    first = next((line for line in "".join(head).splitlines() if line.strip()), "")

    def named(delimiter: str) -> int:
        return sum(forms.is_known(cell.strip().strip('"'), known) for cell in first.split(delimiter))

    return max(DELIMITERS, key=named)


def _checked_header(file: Path, names: list[str], known: set[str]) -> list[str]:
    if not any(forms.is_known(name, known) for name in names):
        shown = ", ".join(name if name in COLUMNS else quoted(name) for name in sorted(known))
        raise UserError(
            f"{file}: its first line names no column that is known ({shown}); put the columns' names there, or name your "
            f"own with -S 'data.columns={{instruction: …, output: …}}'"
        )
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise UserError(f"{file}: its first line names the column {quoted(twice[0])} twice; rename one of the two")
    return names


def _check_no_row_was_swallowed(file: Path, row: list[str], columns: int, delimiter: str, started: int) -> None:
    for index, cell in enumerate(row):
        swallowed = _rows_within(
            cell.splitlines(), columns, delimiter, columns - index if len(row) == columns else None
        )
        if swallowed >= _SWALLOWED:
            raise UserError(
                f"{file}: the record that starts at line {started} has a cell that holds {swallowed} whole rows, so a "
                f"quote before them isn't closed; close it, or give the file as JSON if the cell is meant so"
            )


def _rows_within(lines: list[str], columns: int, delimiter: str, left: int | None) -> int:
    """How many of a cell's lines are rows that an open quote swallowed; 0 if the cell may be meant so.

    `left` is the number of columns from the cell's to the last; None in a row with too many or too few cells.
    """
    if len(lines) < 2:
        return 0
    first, *within, last = lines
    closed_by_a_row = _is_a_row(last, columns, delimiter)
    if not all(_is_a_row(line, columns, delimiter) for line in within):
        return 0
    # The quote swallowed the rest of its own row as well; in the last column it can only close at another row's end.
    if left is not None and not (closed_by_a_row if left == 1 else _is_a_row(first, left, delimiter)):
        return 0
    return len(within) + closed_by_a_row


def _is_a_row(line: str, cells: int, delimiter: str) -> bool:
    """Whether a line is a row of `cells` cells as a program writes it: prose has a space after its commas."""
    try:
        rows = list(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error:
        return False
    return cells > 1 and [len(row) for row in rows] == [cells] and not any(cell[:1].isspace() for cell in rows[0][1:])
