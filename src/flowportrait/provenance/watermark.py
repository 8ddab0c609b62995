"""Put the watermark into frames.

    frame'(x) = frame(x) + strength(x) · pattern(x),      strength = FLAT + GAIN · local contrast, at most STRONGEST

Brightness alone is changed, by one step of 255 on plain walls and up to three in hair, where the eye does not find it.
The pattern stands still while the face moves, so that a detector can sum over a clip, and an encoder keeps it as it
keeps the background.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import cv2
import numpy as np

from flowportrait.media.workers import in_order
from flowportrait.provenance.pattern import UNITS, pattern, unit

FLAT, GAIN, STRONGEST = 0.8, 0.06, 1.5
SMALL_GAIN = 1.3
"""Times the strength at most, in pictures under 512 px."""
_STEPS = 32
"""Fixed-point steps per brightness level."""
_DETAIL = 9
"""Width in units of what counts as local."""


class Watermark:
    """Marks frames of one size. Eight-bit arithmetic throughout: half a millisecond for 512 × 512."""

    def __init__(self, height: int, width: int) -> None:
        wave = (pattern(height, width).clip(-2, 2) * _STEPS).round()
        # Small pictures hold fewer waves of it, so each has to count for more.
        self._curve = _curve(float(np.clip(UNITS / min(height, width), 1, SMALL_GAIN)))
        # Brighter and darker apart: saturating eight-bit sums are several times faster than signed ones.
        self._brighter, self._darker = (part.clip(0).astype(np.uint8) for part in (wave, -wave))
        self._reach = max(3, round(_DETAIL * unit(height, width) / 2) | 1)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """A marked copy of ``frame`` ``[H, W, 3]`` uint8 RGB; of ``[H, W, 4]`` the alpha stays as it is."""
        if frame.shape[2] == 4:
            return np.dstack([self(np.ascontiguousarray(frame[..., :3])), frame[..., 3]])
        strength = self._strength(frame)
        for change, wave in ((cv2.add, self._brighter), (cv2.subtract, self._darker)):
            step = cv2.multiply(wave, strength, scale=1 / _STEPS**2)
            frame = change(frame, cv2.merge([step, step, step]))
        return frame

    def _strength(self, frame: np.ndarray) -> np.ndarray:
        """How strong the mark may be at each pixel ``[H, W]`` uint8, in steps, measured at half the size."""
        height, width = frame.shape[:2]
        small = cv2.resize(frame, ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA)
        grey, reach = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), (self._reach, self._reach)
        contrast = cv2.blur(cv2.absdiff(grey, cv2.blur(grey, reach)), reach)
        strength = cv2.LUT(contrast, self._curve)
        return cv2.resize(strength, (width, height), interpolation=cv2.INTER_LINEAR)


def _curve(gain: float) -> np.ndarray:
    """Strength in steps for every local contrast ``[256]`` uint8."""
    return (gain * (FLAT + GAIN * np.arange(256)).clip(max=STRONGEST) * _STEPS).round().astype(np.uint8)


def marked(frames: Iterable[np.ndarray], workers: int = 1) -> Iterator[np.ndarray]:
    """Every frame with the watermark in it; with more than one worker, up to as many frames late."""

    @lru_cache(maxsize=1)
    def mark(height: int, width: int) -> Watermark:
        return Watermark(height, width)

    return in_order(lambda frame: mark(*frame.shape[:2])(frame), frames, workers, workers)
