"""stdout and stderr that take every character, and never cost the work whose results are files."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from finetune.errors import UserError


@contextmanager
def guarded(stdout_is_the_result: bool) -> Iterator[None]:
    """Within the block, what the terminal's encoding lacks appears as an escape (\\U0001f600), and a stream that can't
    be written (its reader gone, its disk full, closed) is given up with a remark.

    With `stdout_is_the_result` stdout raises instead: BrokenPipeError, or UserError.
    """
    _occupy_closed()
    before = sys.stdout, sys.stderr
    err = _Guarded("stderr", sys.stderr, matters=False)
    out = _Guarded("stdout", sys.stdout, matters=stdout_is_the_result)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield
    finally:
        out.settle()
        err.settle()
        sys.stdout, sys.stderr = before


def _occupy_closed() -> None:
    """Let no file that is opened later become stdout or stderr where the caller (a daemon) has closed these."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)


class _Guarded:
    """A text stream whose failure raises if it `matters`, and is remarked once if it doesn't."""

    def __init__(self, name: str, stream: TextIO | None, matters: bool) -> None:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        self._name, self._matters = name, matters
        self._stream = stream or io.StringIO()  # Python's stdout is None where it was closed
        self._given_up = False

    def write(self, text: str) -> int:
        """Write, or give up."""
        if not self._given_up:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or give up."""
        if not self._given_up:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._fail(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _fail(self, error: OSError | ValueError) -> None:
        self._given_up = True
        reason = getattr(error, "strerror", None) or str(error)
        if not self._matters:
            if self._name == "stdout":
                print(f"warning: stdout can't be written ({reason}); going on without it", file=sys.stderr)
        elif isinstance(error, BrokenPipeError):
            raise error
        else:
            raise UserError(f"stdout: can't be written ({reason}); send the output to another place") from None

    def settle(self) -> None:
        """Flush for the last time; what can't be written is dropped, so that Python's own flush at its end succeeds."""
        with suppress(UserError, BrokenPipeError):
            self.flush()
        if self._given_up:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        self._given_up = True  # loggers may hold it until Python ends
