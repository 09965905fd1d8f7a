"""Signals that ask a run to end: noted at once, obeyed before the next forward, when no step is half done."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from torch import nn


class StopRequested(BaseException):
    """Raised before a forward of the model after a signal, whose number is `args[0]`."""


class Signals:
    """The signal that this process has received, and whether it may obey."""

    def __init__(self, *, alone: bool) -> None:
        """If the process is not `alone`, it obeys once all processes have agreed to: they compute each forward together."""
        self.received: int | None = None
        self._obeys = alone

    def obey(self) -> None:
        """End before the next forward, as all processes have agreed, even if the signal went to another one."""
        self.received = self.received or signal.SIGTERM
        self._obeys = True

    def check(self, *_: Any) -> None:
        """Raise `StopRequested` if a signal was received and may be obeyed."""
        if self.received and self._obeys:
            raise StopRequested(self.received)


@contextmanager
def raised_before_forward(model: nn.Module, signals: Signals) -> Iterator[None]:
    """Within the block SIGTERM, SIGHUP and Ctrl-C raise `StopRequested` before the next forward of `model`; a second
    signal acts at once.

    In the middle of an optimizer step the weights would be neither the old ones nor the new ones.
    """
    before: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        signals.received = number
        _restore(before)

    handle = model.register_forward_pre_hook(signals.check)
    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        number = getattr(signal, name, None)
        with suppress(ValueError):  # only the main thread may set a handler
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, note)
    try:
        yield
    finally:
        handle.remove()
        _restore(before)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
