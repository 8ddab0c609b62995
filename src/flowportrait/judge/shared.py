"""Something costly that several askers need: made once, by whoever comes first, and let go after the last."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Shared(Generic[Made]):
    """``make()`` for ``uses`` callers, from any thread."""

    def __init__(self, make: Callable[[], Made], uses: int) -> None:
        self._make = make
        self._left = uses
        self._lock = threading.Lock()
        self._made: list[Made] = []

    def __call__(self) -> Made:
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            made = self._made[0]
            self._left -= 1
            if self._left <= 0:
                self._made.clear()
            return made
