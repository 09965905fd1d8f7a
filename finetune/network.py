"""Nothing is fetched but where a user asks for it: all else finds the Hub's libraries offline.

Some of them ask the Hub without a word, as bitsandbytes does for compiled code where the package `kernels` is installed.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants

_users_own = constants.HF_HUB_OFFLINE
"""Whether the user's HF_HUB_OFFLINE, or TRANSFORMERS_OFFLINE, forbids what `asked_for` would allow."""


@contextmanager
def cut_off() -> Iterator[None]:
    """While the block runs, huggingface_hub, and what is built on it, refuses to connect. Processes that it starts
    decide for themselves."""
    with _offline(True):
        yield


@contextmanager
def asked_for() -> Iterator[None]:
    """While the block runs, which does what the user asked for by a name on the Hub, the Hub may be asked."""
    with _offline(_users_own):
        yield


@contextmanager
def _offline(value: bool) -> Iterator[None]:
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, value
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
