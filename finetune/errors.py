"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """A mistake in the input. The message is one sentence: what is wrong, where, how to mend it."""
