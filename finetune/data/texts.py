"""Data files of text read a block at a time: decompressed, decoded, and cut into lines, never held whole."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from finetune.errors import UserError
from finetune.sources.catalogue import data_suffix

BLOCK = 2**20
"""Bytes that are read at a time."""


def blocks(file: Path) -> Iterator[str]:
    """The file's text, about `BLOCK` bytes at a time; UTF-8 with or without a byte-order mark, or UTF-16 with one.

    Raises UserError, after what comes before it, for text that can't be read, and for a file without any.
    """
    decoder, done, blank = None, 0, True
    for content, is_last in _marked_last(_bytes(file)):
        if decoder is None:
            encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
            decoder = codecs.getincrementaldecoder(encoding)()
            if content.startswith(codecs.BOM_UTF8):
                content, done = content.removeprefix(codecs.BOM_UTF8), len(codecs.BOM_UTF8)
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(content, is_last)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file}: not UTF-8 text at byte {done - waiting + error.start}; save it as UTF-8"
            ) from None
        done += len(content)
        if "\0" in text:
            raise UserError(f"{file}: holds a NUL character, so it is no text or not UTF-8; save it as UTF-8")
        blank = blank and not text.strip()
        yield text
    if blank:
        raise UserError(f"{file}: is empty; give a file with records, or take it away")


def lines(file: Path, newline: str) -> Iterator[str]:
    """The file's lines with their ends, which are `newline`, or as `open` takes it '' for any of the usual ones."""
    rest: list[str] = []
    for text in blocks(file):
        rest.append(text)
        if "\n" in text or "\r" in text:
            # The last is held back: the other half of a \r\n may stand in the next block.
            *whole, last = io.StringIO("".join(rest), newline=newline).readlines()
            yield from whole
            rest = [last]
    yield from io.StringIO("".join(rest), newline=newline)


def _bytes(file: Path) -> Iterator[bytes]:
    zipped = data_suffix(file).endswith(".gz")
    with gzip.open(file) if zipped else file.open("rb") as stream:
        try:
            while content := stream.read(BLOCK):
                yield content
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{file}: can't be decompressed ({error}); it is damaged or no gzip file") from None


def _marked_last(parts: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Each part, and whether it is the last: an empty one that is added."""
    for part in parts:
        yield part, False
    yield b"", True
