"""Text files read a block at a time: decompressed, decoded, and cut into lines or JSON values, never held whole."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.sources.catalogue import data_suffix

BLOCK = 2**20
"""Bytes that are read at a time."""


def blocks(file: Path) -> Iterator[str]:
    """The file's text, about `BLOCK` bytes at a time; UTF-8 with or without a byte-order mark, or UTF-16 with one.

    Raises UserError, after the text before the fault, for bytes that can't be decoded, and for an empty file.
    """
    decoder, done, blank = None, 0, True
    for content in _bytes(file):
        if decoder is None:
            encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
            decoder = codecs.getincrementaldecoder(encoding)()
            if content.startswith(codecs.BOM_UTF8):
                content, done = content.removeprefix(codecs.BOM_UTF8), len(codecs.BOM_UTF8)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file}: not UTF-8 text at byte {done - pending + error.start}; save it as UTF-8"
            ) from None
        done += len(content)
        if "\0" in text:
            raise UserError(f"{file}: holds a NUL character, so it is no text or not UTF-8; save it as UTF-8")
        blank = blank and not text.strip()
        yield text
    if blank:
        raise UserError(f"{file}: is empty; give a file with records, or take it away")


def lines(file: Path, newline: str) -> Iterator[str]:
    r"""The file's lines with their ends. `newline` is the line end, or '' for any of \n, \r and \r\n, as in `open`."""
    rest: list[str] = []
    for text in blocks(file):
        rest.append(text)
        if "\n" in text or "\r" in text:
            # The last line is held back, because the next block may start with the other half of its \r\n.
            *whole, last = io.StringIO("".join(rest), newline=newline).readlines()
            yield from whole
            rest = [last]
    yield from io.StringIO("".join(rest), newline=newline)


def _bytes(file: Path) -> Iterator[bytes]:
    """The file's content, decompressed, `BLOCK` bytes at a time; b"" ends it."""
    zipped = data_suffix(file).endswith(".gz")
    with gzip.open(file) if zipped else file.open("rb") as stream:
        try:
            while content := stream.read(BLOCK):
                yield content
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{file}: can't be decompressed ({error}); it is damaged or no gzip file") from None
    yield b""


class NotJson(ValueError):
    """The text is not JSON: what is wrong, and where, counted from 1."""

    def __init__(self, what: str, line: int, column: int) -> None:
        super().__init__(what)
        self.what, self.line, self.column = what, line, column


class DuplicateKey(ValueError):
    """An object has the same key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values. Python's json silently keeps the last of two values under one key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise DuplicateKey
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_SPACE = re.compile(r"[ \t\n\r]*")
_MARGIN = 16
"""Characters. A value, or a fault, this close to the end of a block may be an artefact of the cut: `1` of `1.5`, or half
an escape."""


def loads(text: str) -> Any:
    """The JSON value in `text`. Raises ValueError (`DuplicateKey` among them), or RecursionError if it's too deep."""
    return json.loads(text, object_pairs_hook=_object)


class JsonText:
    """A JSON text read one value at a time, so that a list of any length is never held whole.

    Every method raises NotJson where the text is not JSON, DuplicateKey, RecursionError for what is nested too deeply,
    and ValueError for a whole number that is too long for Python.
    """

    def __init__(self, blocks: Iterator[str]) -> None:
        self._blocks, self._text, self._at = blocks, "", 0
        self._lines = self._columns = 0
        """Whole lines before the text in memory, and characters before it on the line that it starts in."""

    def peek(self) -> str:
        """The next character that isn't white space, '' at the end. Nothing is consumed."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(1):
                return ""

    def value(self) -> Any:
        """Read the next value."""
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
            # Twice as much each time: one by one, a long value would be parsed once for each of its blocks.
            blocks *= 2

    def elements(self) -> Iterator[Any]:
        """Read a list, which must come next, and yield its values."""
        self._expect("[")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self._separator("]"):
                return

    def members(self) -> Iterator[str]:
        """Read an object, which must come next, and yield its keys; the caller reads each key's value before the next."""
        self._expect("{")
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

    def _expect(self, opening: str) -> None:
        if self.peek() != opening:
            raise self._fault("Expecting value", self._at)
        self._at += 1

    def _separator(self, closing: str) -> bool:
        """Read what follows a value. Returns whether it was the `closing` bracket and not a comma."""
        found = self.peek()
        if not found or found not in ("," + closing):
            raise self._fault("Expecting ',' delimiter", self._at)
        self._at += 1
        return found == closing

    def _more(self, blocks: int) -> bool:
        """Drop the text that was read, and add up to `blocks` blocks. Returns whether there was one."""
        added = list(islice(self._blocks, blocks))
        if not added:
            return False
        self._lines, self._columns = self._place(self._at)
        self._text = "".join([self._text[self._at :], *added])
        self._at = 0
        return True

    def _place(self, position: int) -> tuple[int, int]:
        """Whole lines before `position` in the text in memory, and characters before it on its line."""
        breaks = self._text.count("\n", 0, position)
        if not breaks:
            return self._lines, self._columns + position
        return self._lines + breaks, position - self._text.rindex("\n", 0, position) - 1

    def _fault(self, what: str, position: int) -> NotJson:
        line, column = self._place(position)
        return NotJson(what, line + 1, column + 1)
