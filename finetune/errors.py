"""The one exception for mistakes that a user can mend, and the one place that prints it."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in the input. The message is one sentence: what is wrong, where, how to mend it."""


def run(main: Callable[[], None]) -> None:
    """Call `main`; print a `UserError` as one sentence on stderr and exit with status 1."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing was written")
