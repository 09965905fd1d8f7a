"""How a command ends: a sentence for what went wrong, no half-written output, and a status that scripts can read."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from finetune import disk, report, streams
from finetune.errors import UserError

SENTENCE_FILE = "FINETUNE_SENTENCE"
"""In the environment: where the last sentence goes instead of stderr, so that whoever started the process can use it."""

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
    `BROKEN_PIPE` and no word where the reader has gone (`| head`). Else the work, whose results are files, goes on.
    """
    with _signals_raised(), streams.guarded(stdout_is_the_result):
        try:
            yield
            sys.stdout.flush()
        except UserError as error:
            _end(f"error: {report.sentence_without_secrets(' '.join(str(error).splitlines()))}")
        except KeyboardInterrupt:
            _end("error: interrupted", 128 + signal.SIGINT)
        except Ended as error:
            word = WORDS[error.number != signal.SIGINT]
            _end(f"error: {word}{error.kept and f'; {error.kept}'}", 128 + error.number)
        except BrokenPipeError:
            sys.exit(BROKEN_PIPE)
        except Exception as error:
            _end(f"error: {report.sentence_without_secrets(disk.sentence(error) or report.write(error))}")


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
