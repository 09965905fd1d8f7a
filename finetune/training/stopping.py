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


@contextmanager
def at_next_pass(model: nn.Module) -> Iterator[None]:
    """Within the block SIGTERM, SIGHUP and Ctrl-C raise `Stopped` where `model` is called next; a second one acts at once.

    In the midst of an optimizer step the weights would be neither the old nor the new ones.
    """
    heard: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        _restore(before)

    def check(*_: Any) -> None:
        if heard:
            raise Stopped(heard[0])

    handle = model.register_forward_pre_hook(check)
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
