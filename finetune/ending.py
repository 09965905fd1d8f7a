"""How a command ends: a sentence for what went wrong, no half-written output, and a status that scripts can read."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, cast

from finetune import crash_report, files
from finetune.errors import UserError

SENTENCE_FILE = "FINETUNE_SENTENCE"
"""In the environment: where the last sentence goes instead of stderr, so that the parent process can use it."""

WORDS = ("interrupted", "terminated")
"""Begin the sentence after a signal: Ctrl-C, or another."""

LOST = "another process of this run has ended"
"""Begins the sentence of a process that fails because of another's end."""

BROKEN_PIPE = 141
"""As shells have it for a process whose reader has gone: 128 + SIGPIPE."""


class Ended(BaseException):
    """A signal, by its number, that asks the process to end; raised, so that drafts are removed on the way out."""

    def __init__(self, number: int, kept: str = "") -> None:
        """With what is `kept` of the work, in words."""
        super().__init__(number)
        self.number, self.kept = number, kept


@contextmanager
def sentences(stdout_is_the_result: bool) -> Iterator[None]:
    """End the process with one sentence and status 1 if the block raises: the user's mistake, the disk's refusal, or
    a fault of ours, whose full report is written to a file that the sentence names.

    A signal ends it with 128 and its number. A stdout that can't be written ends it only if it is the result: with
    `BROKEN_PIPE` and no word where the reader has gone (`| head`). Otherwise the work, whose results are files, continues.
    """
    with _signals_raised(), _guarded(stdout_is_the_result):
        try:
            yield
            sys.stdout.flush()
        except UserError as error:
            _end(f"error: {crash_report.sentence_without_secrets(' '.join(str(error).splitlines()))}")
        except KeyboardInterrupt:
            _end("error: interrupted", 128 + signal.SIGINT)
        except Ended as error:
            word = WORDS[error.number != signal.SIGINT]
            _end(f"error: {word}{error.kept and f'; {error.kept}'}", 128 + error.number)
        except BrokenPipeError:
            sys.exit(BROKEN_PIPE)
        except Exception as error:
            _end(
                f"error: {crash_report.sentence_without_secrets(files.disk_sentence(error) or crash_report.write(error))}"
            )


def _end(sentence: str, status: int = 1) -> None:
    """Exit with `status` after `sentence` on stderr."""
    if place := os.environ.get(SENTENCE_FILE):
        Path(place).write_text(sentence)
        sys.exit(status)
    if status == 1:
        sys.exit(sentence)
    print(sentence, file=sys.stderr)
    sys.exit(status)


@contextmanager
def _signals_raised() -> Iterator[None]:
    """SIGTERM (also of a scheduler) and SIGHUP (the terminal has gone) raise in the block, unless they are ignored."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended(number)

    before: dict[signal.Signals, Any] = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # `nohup` has SIGHUP ignored. Only the main thread may set a handler.
        with suppress(ValueError):
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _guarded(stdout_is_the_result: bool) -> Iterator[None]:
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
                print(f"warning: stdout can't be written ({reason}); continuing without it", file=sys.stderr)
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
