"""JSON read one value at a time from text that comes in blocks, so that a list of any length is never held whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")

_MARGIN = 16
"""Characters behind a value, or a fault, without which it may be owed to the block's end: as in `1` of `1.5`, or
the half of an escape."""


class NotJson(ValueError):
    """Text that is no JSON: what is wrong, and where, counted from 1."""

    def __init__(self, what: str, line: int, column: int) -> None:
        super().__init__(what)
        self.what, self.line, self.column = what, line, column


class DuplicateKey(ValueError):
    """An object with the same key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python's json keeps the last of two values under one key, without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise DuplicateKey
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def loads(text: str) -> Any:
    """The JSON value in `text`. Raises ValueError (`DuplicateKey` among them), or RecursionError if it's too deep."""
    return json.loads(text, object_pairs_hook=_object)


class JsonText:
    """A JSON text, gone through once from its start.

    Everything raises NotJson where the text is none, DuplicateKey, RecursionError for what is nested too deeply, and
    ValueError for a whole number that Python takes for too long.
    """

    def __init__(self, blocks: Iterator[str]) -> None:
        self._blocks, self._text, self._at = blocks, "", 0
        self._lines = self._columns = 0
        """Before the text at hand: whole lines, and the characters on the line that it starts in."""

    def peek(self) -> str:
        """The next character that isn't white space, '' at the end; nothing is taken."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(1):
                return ""

    def value(self) -> Any:
        """Take the next value."""
        self.peek()
        blocks = 1
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                at_the_end = error.msg.startswith("Unterminated string") or error.pos + _MARGIN > len(self._text)
                fault = self._fault(error.msg, error.pos)
                if not (at_the_end and self._more(blocks)):
                    raise fault from None
            else:
                length = end - self._at
                if end + _MARGIN <= len(self._text) or not self._more(blocks):
                    self._at += length
                    return value
            # Twice as much each time, or one long value would be gone through once for each of its blocks.
            blocks *= 2

    def elements(self) -> Iterator[Any]:
        """Take a list, which comes next, and yield its values."""
        self._take("[")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self._separator("]"):
                return

    def members(self) -> Iterator[str]:
        """Take an object, which comes next, and yield its keys; who asks takes each one's value before the next."""
        self._take("{")
        if self.peek() == "}":
            self._at += 1
            return
        seen = set[str]()
        while True:
            if self.peek() != '"':
                raise self._fault("Expecting property name enclosed in double quotes", self._at)
            key = self.value()
            if self.peek() != ":":
                raise self._fault("Expecting ':' delimiter", self._at)
            self._at += 1
            if key in seen:
                raise DuplicateKey
            seen.add(key)
            yield key
            if self._separator("}"):
                return

    def end(self) -> None:
        """Check that nothing is left."""
        if self.peek():
            raise self._fault("Extra data", self._at)

    def _take(self, opening: str) -> None:
        if self.peek() != opening:
            raise self._fault("Expecting value", self._at)
        self._at += 1

    def _separator(self, closing: str) -> bool:
        """Take what follows a value: whether it was the `closing` bracket and not a comma."""
        found = self.peek()
        if not found or found not in ("," + closing):
            raise self._fault("Expecting ',' delimiter", self._at)
        self._at += 1
        return found == closing

    def _more(self, blocks: int) -> bool:
        """Let go of what was taken, and add so many blocks; whether there was one."""
        added = list(islice(self._blocks, blocks))
        if not added:
            return False
        self._lines, self._columns = self._place(self._at)
        self._text = "".join([self._text[self._at :], *added])
        self._at = 0
        return True

    def _place(self, position: int) -> tuple[int, int]:
        """Whole lines before `position` in the text at hand, and characters before it on its line."""
        breaks = self._text.count("\n", 0, position)
        if not breaks:
            return self._lines, self._columns + position
        return self._lines + breaks, position - self._text.rindex("\n", 0, position) - 1

    def _fault(self, what: str, position: int) -> NotJson:
        line, column = self._place(position)
        return NotJson(what, line + 1, column + 1)
