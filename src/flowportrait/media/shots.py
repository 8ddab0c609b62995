"""Where a video cuts from one shot to another.

    cut at t  ⇔  d[t] > LEAST  and  d[t] > RATIO · median of the last d      d = mean |thumbnail[t] − thumbnail[t − 1]|

A cut is a jump out of the motion around it; a wave of the hand or a flickering lamp moves before and after as well.
"""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np

LEAST = 12.0
"""Mean change of the thumbnail, of 255, that a cut has at least."""
RATIO = 5.0
MEMORY, KNOWN = 12, 4
_THUMBNAIL = (32, 18)
_ENOUGH = 144
"""Pixels of the shorter side that are looked at: of more, every second, third, … averages to the same thumbnail."""


class CutDetector:
    """Shown one frame after the other, says which begin a new shot."""

    def __init__(self) -> None:
        self._before: np.ndarray | None = None
        self._changes: deque[float] = deque(maxlen=MEMORY)

    def __call__(self, frame: np.ndarray) -> bool:
        """Whether ``frame`` ``[H, W, 3]`` uint8 begins a new shot; the first one of a video does not."""
        step = max(1, min(frame.shape[:2]) // _ENOUGH)
        thumbnail = cv2.resize(frame[::step, ::step], _THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        before, self._before = self._before, thumbnail
        if before is None:
            return False
        change = float(np.abs(thumbnail - before).mean())
        usual = float(np.median(self._changes)) if self._changes else 0.0
        if len(self._changes) < KNOWN:
            # Too little was seen of how much this shot moves: assume a lot.
            usual = max(usual, LEAST / 2)
        if change > LEAST and change > RATIO * usual:
            self._changes.clear()
            return True
        self._changes.append(change)
        return False
