"""The one exception for mistakes that a user can fix, and how its sentence quotes a value or another error."""

from reprlib import Repr

LONGEST = 80
"""Characters of a value that a sentence quotes at most."""


class UserError(Exception):
    """A mistake in the input. The message is one sentence: what is wrong, where, how to fix it."""


def quoted(value: object) -> str:
    """`value` as Python writes it, cut to what a line holds, however large, deep or self-containing it is."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"a number of about {round(value.bit_length() * 0.30103)} digits"
    short = Repr()
    short.maxstring = short.maxother = short.maxlong = LONGEST
    short.maxlevel = 3
    text = short.repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def first_line(error: BaseException) -> str:
    """What `error` says, in a line; its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
