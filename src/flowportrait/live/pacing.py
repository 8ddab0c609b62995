"""Which picture is drawn next, and which one leaves: frames with deadlines, in one thread that also generates motion.

    tick ─► PictureQueue: frame n, due two frames later ─► DrawingSchedule ─► draw it, or generate, or wait
                          └─► (frame, picture) leaves when it is due, with its own picture or the newest there is

Of the frames that wait, the earliest one that can still be drawn in time is drawn (earliest deadline first); a frame
that cannot is skipped, as it would make the next one late as well. Motion is generated where no frame waits, or where
speech would run out of it if one more frame were drawn first: time that a drawing gains is its only reserve against a
pause of the machine. How long both take is the median of the last few times, so a single pause changes no decision.

Frames that wait are changed where an interruption or the beginning of speech would else come 80 ms later than it can be
drawn (``LiveSession.revise``): the reserve of two frames is for steady motion alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
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

    One thread adds frames, changes them and takes pairs; one other thread draws.
    """

    def __init__(self, first: np.ndarray, delay: int = 2) -> None:
        """Prepare a queue.

        Args:
            first: the picture that is shown until the first frame is drawn, ``[H, W, 3]``.
            delay: frames between a tick and its pair: the time for drawing.
        """
        self.delay, self.late, self.left = delay, 0, 0
        self._frames: deque[WaitingFrame] = deque()
        # By the index of the frame; of a frame that was made anew, the newest picture.
        self._pictures: dict[int, tuple[int, np.ndarray]] = {-1: (0, first)}
        self._taken = -1
        self._lock = Lock()

    def add(self, frame: LiveFrame, due: float = 0.0) -> None:
        """Add a frame that was ticked, and the time at which it leaves."""
        with self._lock:
            self._frames.append(WaitingFrame(frame, due))

    def waiting(self, after: int) -> list[WaitingFrame]:
        """Return the frames after the one of that number, the earliest first."""
        with self._lock:
            return self._waiting_after(after)

    def take(self, choose: Callable[[list[WaitingFrame]], LiveFrame | None]) -> LiveFrame | None:
        """Return the frame to draw, or None; it and those before it are not offered again unless they are revised.

        Args:
            choose: returns one of the frames that wait for their pictures, the earliest first, or None.
        """
        with self._lock:
            frame = choose(self._waiting_after(self._taken))
            if frame is not None:
                self._taken = frame.index
            return frame

    def _waiting_after(self, index: int) -> list[WaitingFrame]:
        return [waiting for waiting in self._frames if waiting.frame.index > index]

    @property
    def spoken(self) -> int:
        """Samples of pushed speech in the frames that have not left."""
        with self._lock:
            return sum(waiting.frame.spoken for waiting in self._frames)

    def leaving_after(self, time: float) -> int:
        """Return how many frames leave after a time and can be changed until then."""
        with self._lock:
            return sum(waiting.due > time for waiting in self._frames)

    def revise(self, frames: Sequence[LiveFrame]) -> None:
        """Put frames in the places of those with the same indices; they are drawn anew.

        A frame that is not drawn in time leaves with the picture that it had before, and counts as late.
        """
        changed = {frame.index: frame for frame in frames}
        with self._lock:
            self._frames = deque(
                waiting._replace(frame=changed.get(waiting.frame.index, waiting.frame)) for waiting in self._frames
            )
            self._taken = min([self._taken, *(index - 1 for index in changed)])

    def drawn(self, index: int, picture: np.ndarray, revision: int = 0) -> None:
        """Add the picture of a frame, for the revision of the frame that was drawn."""
        with self._lock:
            if index not in self._pictures or self._pictures[index][0] <= revision:
                self._pictures[index] = revision, picture

    def leave(self) -> tuple[LiveFrame, np.ndarray] | None:
        """Return the oldest frame with its picture, or with the newest there is; None while it has time to be drawn."""
        with self._lock:
            if len(self._frames) <= self.delay:
                return None
            frame = self._frames.popleft().frame
            newest = max(index for index in self._pictures if index <= frame.index)
            for index in [index for index in self._pictures if index < newest]:
                del self._pictures[index]
            revision, picture = self._pictures[newest]
            self.left += 1
            self.late += (newest, revision) != (frame.index, frame.revision)
            return frame, picture


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
    def redrawing_seconds(self) -> float:
        """Seconds in which a frame can be drawn from now on although the thread may be in the middle of another one."""
        return 1.5 * median(self._drawing)

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
