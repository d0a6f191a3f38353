"""The one error that a user is meant to read."""


class InputError(ValueError):
    """Bad usage, or input refused before any work: entry points print it in one line and exit with 2.

    The message names the file or the setting at fault, what was expected, and what to do.
    """
