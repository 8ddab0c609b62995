"""How far the head of a portrait in half profile may turn.

A photo that shows a face from the side knows nothing of its far side. Turned to the front, that side appears; turned
further away, the nose and the far cheek are drawn from a few pixels at the edge. So the turn of the head, and only the
turn, is compressed smoothly towards a limit on either side, which shrinks with the angle of the photo:

    turn' = turn                                            up to half of the limit
          = limit / 2 · (1 + tanh((turn − limit / 2) / (limit / 2)))      beyond
"""

from __future__ import annotations

import numpy as np
import torch

from flowportrait.media.faces import face_yaw
from flowportrait.rendering.motion_basis import HEAD, MotionBasis

_TURN = HEAD.start + 1
"""The coefficient of the head that turns it about the vertical axis."""

_FRONTAL = 15.0
"""Degrees of yaw up to which a portrait turns freely."""

_ANGLES = (15.0, 45.0, 60.0)
_TO_THE_FRONT = (30.0, 11.0, 6.0)
_FURTHER_AWAY = (30.0, 7.0, 4.0)
"""Limits of the turn in degrees at three angles of a portrait, chosen by eye on photos of training people: beyond them
the far cheek is a smear, or the outline of the nose breaks."""


class HeadRange:
    """Limits the turn of one portrait with landmarks ``[478, 3]``.

    Attributes:
        limits: largest turn in degrees to the front and further away; None for a frontal portrait.
    """

    def __init__(self, basis: MotionBasis, landmarks: np.ndarray) -> None:
        yaw = face_yaw(landmarks)
        self.limits: tuple[float, float] | None = None
        if abs(yaw) > _FRONTAL:
            front, away = (float(np.interp(abs(yaw), _ANGLES, ends)) for ends in (_TO_THE_FRONT, _FURTHER_AWAY))
            self.limits = front, away
        # A positive rotation about the vertical axis lowers the yaw of ``face_yaw``.
        self._sign = float(np.sign(yaw))
        self._degrees = float(torch.rad2deg(basis.head_std[1]))

    def __call__(self, motion: torch.Tensor) -> torch.Tensor:
        """Return motion ``[T, 30]`` with a limited turn; the same object for a frontal portrait."""
        if self.limits is None:
            return motion
        front, away = self.limits
        turn = motion[:, _TURN] * self._degrees * self._sign
        turn = torch.where(turn > 0, _compress(turn, front), -_compress(-turn, away))
        result = motion.clone()
        result[:, _TURN] = turn / (self._degrees * self._sign)
        return result


def _compress(turn: torch.Tensor, limit: float) -> torch.Tensor:
    """Return turns unchanged up to half of the limit, and compressed smoothly below it beyond."""
    half = limit / 2
    return torch.where(turn > half, half + half * torch.tanh((turn - half) / half), turn)
