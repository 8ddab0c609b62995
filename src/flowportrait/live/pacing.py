"""Which picture is drawn next, and which one leaves: frames with deadlines, in one thread that also generates motion.

    tick ─► PictureQueue: frame n, due two frames later ─► DrawingSchedule ─► draw it, or generate, or wait
                          └─► (frame, picture) leaves when it is due, with its own picture or the newest there is

Of the frames that wait, the earliest one that can still be drawn in time is drawn (earliest deadline first); a frame
that cannot is skipped, as it would make the next one late as well. Motion is generated where no frame waits, or where
speech would run out of it if one more frame were drawn first: time that a drawing gains is its only reserve against a
pause of the machine. How long both take is the median of the last few times, so a single pause changes no decision.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median
from threading import Lock
from typing import NamedTuple

import numpy as np

from flowportrait.live.session import LiveFrame

_REMEMBERED = 9
"""Number of durations from which the next one is estimated."""
_FIRST_ESTIMATE = 0.03
"""Seconds that drawing and generating are expected to take before either was measured."""


class WaitingFrame(NamedTuple):
    """A frame that has no picture yet, and the time in seconds at which it leaves."""

    frame: LiveFrame
    due: float


class PictureQueue:
    """Pairs frames with their pictures: a frame leaves a fixed time after its tick, with the newest picture there is.

    One thread adds frames and takes pairs, one other thread draws.
    """

    def __init__(self, first: np.ndarray, delay: int = 2) -> None:
        """Prepare a queue.

        Args:
            first: the picture that is shown until the first frame is drawn, ``[H, W, 3]``.
            delay: frames between a tick and its pair: the time for drawing.
        """
        self.delay, self.late, self.left = delay, 0, 0
        self._frames: deque[WaitingFrame] = deque()
        self._pictures: deque[tuple[int, np.ndarray]] = deque([(-1, first)])
        self._lock = Lock()

    def add(self, frame: LiveFrame, due: float = 0.0) -> None:
        """Add a frame that was ticked, and the time at which it leaves."""
        with self._lock:
            self._frames.append(WaitingFrame(frame, due))

    def waiting(self, after: int) -> list[WaitingFrame]:
        """Return the frames after the one of that number, the earliest first."""
        with self._lock:
            return [waiting for waiting in self._frames if waiting.frame.index > after]

    def drawn(self, index: int, picture: np.ndarray) -> None:
        """Add the picture of a frame."""
        with self._lock:
            self._pictures.append((index, picture))

    def leave(self) -> tuple[LiveFrame, np.ndarray] | None:
        """Return the oldest frame with its picture, or with the newest there is; None while it has time to be drawn."""
        with self._lock:
            if len(self._frames) <= self.delay:
                return None
            frame = self._frames.popleft().frame
            while len(self._pictures) > 1 and self._pictures[1][0] <= frame.index:
                self._pictures.popleft()
            self.left += 1
            self.late += self._pictures[0][0] != frame.index
            return frame, self._pictures[0][1]


class DrawingSchedule:
    """Decides what one thread does next: draw a frame, generate motion, or wait."""

    def __init__(self) -> None:
        self._drawing: deque[float] = deque([_FIRST_ESTIMATE], maxlen=_REMEMBERED)
        self._generating: deque[float] = deque([_FIRST_ESTIMATE], maxlen=_REMEMBERED)

    def next_frame(self, now: float, waiting: Sequence[WaitingFrame], motion_due: float | None) -> LiveFrame | None:
        """Return the frame to draw; None if motion should be generated, or nothing can be done.

        Args:
            now: the time in seconds.
            waiting: frames without a picture, the earliest first.
            motion_due: the time at which speech runs out of motion; None if none can be generated now.
        """
        if not waiting:
            return None
        drawing = median(self._drawing)
        if motion_due is not None and now + max(self._drawing) + max(self._generating) > motion_due:
            return None
        # If no frame can be drawn in time, the newest one is shown longest.
        return next((one.frame for one in waiting if now + drawing <= one.due), waiting[-1].frame)

    @property
    def last_drawing(self) -> float:
        """Seconds that the last drawing took."""
        return self._drawing[-1]

    def record_drawing(self, seconds: float) -> None:
        """Take the duration of a drawing into account."""
        self._drawing.append(seconds)

    def record_generation(self, seconds: float) -> None:
        """Take the duration of generating a chunk into account."""
        self._generating.append(seconds)
