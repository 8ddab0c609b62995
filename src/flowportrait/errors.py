"""User-facing errors: one sentence that says what is wrong, where, and what to do."""


class BadInput(Exception):
    """Something the user gave cannot be used.

    The command line prints the message on standard error and exits with code 2; from Python it is an
    ordinary exception. The message is one sentence with the offending path or key in it.
    """
