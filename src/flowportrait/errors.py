"""User-facing errors: one sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

from typing import Any


class BadInput(Exception):
    """Input from the user that cannot be used.

    The command line prints the message on standard error and exits with code 2; in Python it is an ordinary exception.
    The message is one sentence with the offending path or key in it.
    """


class PartialFailure(BadInput):
    """Some of several inputs that could not be used; ``result`` is what the command returns for the others."""

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result
