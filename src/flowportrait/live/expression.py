"""The emotion that a live face shows: it comes and goes slowly, as an expression does.

show(weights) ─► target ── critically damped ──► next(): what is added to the motion of this frame
                                                 zero while a driver moves the face, whose expression it has then
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from flowportrait.media.video import FPS
from flowportrait.rendering.emotion import emotion_offset
from flowportrait.rendering.motion_basis import MOTION_DIM

_RESPONSE_SECONDS = 0.25
"""Time constant of a critically damped spring; 90 % of an expression are there after 3.9 times as long, one second.
Smiles that come slowly are judged more genuine than those that come at once (Krumhuber and Kappas 2005, "Moving
smiles", Journal of Nonverbal Behavior 29)."""


class EasedEmotion:
    """An emotion that is approached smoothly, with a speed that never jumps."""

    def __init__(self) -> None:
        self._weights: dict[str, float] = {}
        self._target = self._offset = self._velocity = np.zeros(MOTION_DIM, np.float32)

    @property
    def weights(self) -> dict[str, float]:
        """The weights that were asked for last, by emotion."""
        return dict(self._weights)

    def show(self, weights: Mapping[str, float]) -> None:
        """Approach an emotion from the next frame on; no weights return to the neutral face.

        Raises:
            BadInput: a name or a weight is not possible.
        """
        target = emotion_offset(weights).numpy()
        self._target, self._weights = target, {name: weight for name, weight in weights.items() if weight}

    def next(self, shown: bool = True) -> np.ndarray:
        """Return what is added to the motion of the next frame, ``[30]`` float32.

        Args:
            shown: approach the emotion; otherwise the neutral face.
        """
        step = 1 / (FPS * _RESPONSE_SECONDS)
        decay = np.float32(math.exp(-step))
        target = self._target if shown else np.zeros_like(self._target)
        # The exact solution of a critically damped spring for one frame, in units of its time constant.
        gap = self._offset - target
        slope = (self._velocity + gap) * np.float32(step)
        self._offset = target + (gap + slope) * decay
        self._velocity = (self._velocity - slope) * decay
        return self._offset
