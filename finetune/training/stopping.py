"""Signals that ask a run to end: heard at once, obeyed where nothing is half done."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from torch import nn


class Stopped(BaseException):
    """Raised before a pass of the model, after a signal, whose number is `args[0]`."""


class Signals:
    """What this process has heard, and whether it is to obey."""

    def __init__(self, *, alone: bool) -> None:
        """Of several processes none obeys until all have agreed to: a pass is made by all together."""
        self.heard: int | None = None
        self._obeys = alone

    def obey(self) -> None:
        """All have agreed to end: whoever hasn't heard the signal does as if it had."""
        self.heard = self.heard or signal.SIGTERM
        self._obeys = True

    def check(self, *_: Any) -> None:
        """Raise `Stopped` if it is time."""
        if self.heard and self._obeys:
            raise Stopped(self.heard)


@contextmanager
def at_next_pass(model: nn.Module, signals: Signals) -> Iterator[None]:
    """Within the block SIGTERM, SIGHUP and Ctrl-C raise `Stopped` where `model` is called next; a second one acts at once.

    In the midst of an optimizer step the weights would be neither the old nor the new ones.
    """
    before: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        signals.heard = number
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
