"""Keep the chatter of native libraries off the user's terminal.

MediaPipe and TensorFlow Lite write start-up remarks straight to file descriptor 2, past Python's ``sys.stderr``.
While this is active anywhere in the process such writes go nowhere; what Python prints still arrives, and exceptions
pass. Threads may use it at the same time: the first one in redirects the descriptor, the last one out restores it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class _Redirection:
    """File descriptor 2 at the null device for as long as somebody wants it there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._terminal: int | None = None
        """Where descriptor 2 points while nobody is silenced; kept open, since threads may still write to it."""
        self._substitute: TextIO | None = None
        self._replaced: Any = None
        self._redirected = False

    def begin(self) -> None:
        """Redirect if this is the first user."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                # Without a usable standard error (a service, a notebook) there is nothing to keep clean.
                with suppress(OSError, ValueError):
                    self._redirect()

    def end(self) -> None:
        """Restore if this was the last user."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._restore()

    def _redirect(self) -> None:
        if sys.stderr is not None:
            sys.stderr.flush()
        if self._terminal is None:
            self._terminal = os.dup(2)
        else:
            os.dup2(2, self._terminal, inheritable=False)
        if _is_descriptor_two(sys.stderr):
            if self._substitute is None:
                form = {name: getattr(sys.stderr, name, None) for name in ("encoding", "errors")}
                self._substitute = os.fdopen(self._terminal, "w", buffering=1, closefd=False, **form)
            self._replaced, sys.stderr = sys.stderr, self._substitute
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, 2)
            self._redirected = True
        finally:
            os.close(null)

    def _restore(self) -> None:
        if self._replaced is not None:
            if sys.stderr is self._substitute:
                sys.stderr = self._replaced
            self._replaced = None
        if self._substitute is not None:
            with suppress(OSError, ValueError):
                self._substitute.flush()
        if self._redirected and self._terminal is not None:
            os.dup2(self._terminal, 2)
        self._redirected = False


_redirection = _Redirection()


@contextmanager
def native_chatter_silenced() -> Iterator[None]:
    """Redirect file descriptor 2 to the null device, and ``sys.stderr`` to where it pointed before."""
    _redirection.begin()
    try:
        yield
    finally:
        _redirection.end()


def _is_descriptor_two(stream: Any) -> bool:
    try:
        return bool(stream.fileno() == 2)
    except (AttributeError, OSError, ValueError):
        return False
