"""What should not change, or not show: colour, brightness, repeated pictures, the border of a paste-back.

colour drift  = std_t of (R − B) on the cheeks           flicker = rms_t of the jump of brightness between frames
seam energy   = max over straight lines around the face of | median along the line of the step across it |,
                minus the median over all such lines
"""

from __future__ import annotations

import cv2
import numpy as np

REACH = (0.12, 0.95)
"""Where lines are looked for: from the face's outline outward, in face sizes."""


def colour_drift(skin: np.ndarray) -> float | None:
    """Levels by which the cheeks ``[T, 3]`` swing between warm and cool; ``None`` below half a second."""
    warm = skin[:, 0] - skin[:, 2]
    warm = warm[np.isfinite(warm)]
    return float(warm.std()) if len(warm) > 12 else None


def flicker(skin: np.ndarray) -> float | None:
    """Root mean square jump of the cheeks' brightness from frame to frame, in levels."""
    steps = np.diff(skin @ np.array([0.299, 0.587, 0.114]))
    steps = steps[np.isfinite(steps)]
    return float(np.sqrt((steps**2).mean())) if len(steps) > 12 else None


def repeated(still: np.ndarray) -> float | None:
    """Share of frames that show the picture before again."""
    return float(still.mean()) if len(still) else None


def seam_energy(border: np.ndarray) -> float | None:
    """Levels of the strongest straight step around the face over what straight lines there show anyway."""
    return float(border[0] - border[1]) if border[0] > 0 else None


class BorderProbe:
    """Gathers the mean picture of a clip and looks for straight vertical and horizontal steps around the face.

    A border that stands still stays sharp in the mean picture while everything that moves blurs; the edge of a
    background object may be as straight, so the figure is to be read against the same clip without paste-back.
    """

    def __init__(self, landmarks: np.ndarray) -> None:
        face = landmarks[..., :2].mean(0)
        self._low, self._high = face.min(0), face.max(0)
        self._sum: np.ndarray | None = None
        self._count = 0

    def add(self, frame: np.ndarray) -> None:
        """One frame ``[H, W, 3]`` uint8."""
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
        self._sum = grey if self._sum is None else self._sum + grey
        self._count += 1

    def jumps(self) -> np.ndarray:
        """Strongest and median step ``[2]`` in levels over the lines left, right, above and below the face."""
        if self._sum is None:
            return np.zeros(2, np.float32)
        mean = self._sum / self._count
        across = self._lines(mean, self._low, self._high)
        down = self._lines(mean.T, self._low[::-1], self._high[::-1])
        steps = np.concatenate([across, down])
        if len(steps) < 8:
            return np.zeros(2, np.float32)
        return np.array([steps.max(), np.median(steps)], np.float32)

    def _lines(self, picture: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Steps across vertical lines: signed, the median along the face's height, and sharper than their
        surroundings."""
        top, bottom = (int(np.clip(v, 0, picture.shape[0])) for v in (low[1], high[1]))
        if bottom - top < 8:
            return np.zeros(0)
        size = float((high - low).max())
        slope = np.diff(picture[top:bottom], axis=1)
        sharp = slope[:, 2:-2] - 0.5 * (slope[:, :-4] + slope[:, 4:])
        # Agreement along the line: a seam steps the same way everywhere, an outline does not.
        step = np.abs(np.median(sharp, axis=0))
        place = np.arange(len(step)) + 2.5
        inner, outer = REACH[0] * size, REACH[1] * size
        left = (place < low[0] - inner) & (place > low[0] - outer)
        right = (place > high[0] + inner) & (place < high[0] + outer)
        inside = (place > 3) & (place < picture.shape[1] - 4)
        return step[(left | right) & inside]
