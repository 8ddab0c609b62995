"""Ctrl-C in long work: the step under way is finished and saved; a second Ctrl-C stops at once.

    with StopRequest() as stop:
        while not done and not stop.asked:
            step()
        save()
    stop.obey()          # raises KeyboardInterrupt if one was asked for

Saving in the middle of a step would keep a state that no uninterrupted run ever has.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Turns the first SIGINT into a flag. Outside the main thread, where signals cannot be caught, it does nothing."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def obey(self) -> None:
        """Raise the KeyboardInterrupt that was put off."""
        if self.asked:
            raise KeyboardInterrupt

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("Finishing this step and saving; Ctrl-C again stops at once.", file=sys.stderr)
