"""Keep the chatter of native libraries off the user's terminal.

MediaPipe and TensorFlow Lite write start-up remarks straight to file descriptor 2, past Python's ``sys.stderr``.
While this is active such writes go nowhere; what Python prints still arrives, and exceptions pass.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def native_chatter_silenced() -> Iterator[None]:
    """Redirect file descriptor 2 to the null device, and ``sys.stderr`` to where it pointed before."""
    try:
        sys.stderr.flush()
        terminal = os.dup(2)
    except (OSError, ValueError):
        # No usable standard error (a service, a notebook): nothing to keep clean.
        yield
        return
    python_stderr = sys.stderr
    shares = _is_descriptor_two(python_stderr)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    if shares:
        sys.stderr = os.fdopen(os.dup(terminal), "w", buffering=1)
    try:
        yield
    finally:
        if shares:
            sys.stderr.close()
            sys.stderr = python_stderr
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(null)


def _is_descriptor_two(stream: Any) -> bool:
    try:
        return bool(stream.fileno() == 2)
    except (AttributeError, OSError, ValueError):
        return False
