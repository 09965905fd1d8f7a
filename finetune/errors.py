"""The one exception for mistakes that a user can mend, and how a value is quoted in its sentence."""

from reprlib import Repr

LONGEST = 80
"""Characters of a value that a sentence quotes at most."""


class UserError(Exception):
    """A mistake in the input. The message is one sentence: what is wrong, where, how to mend it."""


def quoted(value: object) -> str:
    """`value` as Python writes it, cut to what a line holds, however large, deep or self-containing it is."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"a number of about {round(value.bit_length() * 0.30103)} digits"
    short = Repr()
    short.maxstring = short.maxother = short.maxlong = LONGEST
    short.maxlevel = 3
    text = short.repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
