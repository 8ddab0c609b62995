"""What a person may turn up or down in a performance, each leaving the lips' opening exactly as it was.

blink, gaze, head     their own coordinates:  motion[part] · scale (+ offset)
expression            brows, and the part N of the lower face that opens and closes no lips (smile, width):
                      motion + (scale − 1) · motion N,     N = projection on the null space of the lip gap
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from flowportrait.codec import lips
from flowportrait.codec.basis import BLINK, BROWS, GAZE, HEAD, LOWER, MotionBasis
from flowportrait.errors import BadInput

_LARGEST_SCALE = 3.0
LARGEST_GAZE = 30.0

_EYEBALL = 12 / 90
"""Radius of an eyeball in outer-eye-corner distances (about 12 and 90 mm)."""

_IRISES = (468, 473)


@dataclass(frozen=True)
class Controls:
    """Scales (1: as performed, 0: not at all) and where the eyes look, in degrees from straight ahead.

    blink: depth of blinks; head_motion: nods and turns; expression_scale: brows and smiles; gaze: (to the viewer's
    right, up), added to the small eye movements of the performance.
    """

    blink: float = 1.0
    head_motion: float = 1.0
    expression_scale: float = 1.0
    gaze: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for name in ("blink", "head_motion", "expression_scale"):
            value = getattr(self, name)
            if not 0 <= value <= _LARGEST_SCALE:
                raise BadInput(f"{name}={value} is not possible: give a number from 0 to {_LARGEST_SCALE:g}.")
        if not all(math.isfinite(angle) and abs(angle) <= LARGEST_GAZE for angle in self.gaze):
            raise BadInput(f"gaze={self.gaze} is not possible: give degrees within ±{LARGEST_GAZE:g}.")

    def __call__(self, motion: torch.Tensor) -> torch.Tensor:
        """Motion ``[..., 30]`` as controlled; a new tensor."""
        result = motion.clone()
        result[..., BROWS] *= self.expression_scale
        result[..., LOWER] += (self.expression_scale - 1) * (motion[..., LOWER] @ lip_free())
        result[..., BLINK] *= self.blink
        result[..., HEAD] *= self.head_motion
        result[..., GAZE] += gaze_coefficients(*self.gaze)
        return result


@lru_cache(maxsize=1)
def lip_free() -> torch.Tensor:
    """Projection ``[16, 16]`` of lower-face motion on what changes none of the nine lip gaps."""
    gap = lips.gap(MotionBasis.load().directions[LOWER]).double()
    return (torch.eye(gap.shape[0], dtype=torch.float64) - gap @ torch.linalg.pinv(gap)).float()


def gaze_coefficients(right: float, up: float) -> torch.Tensor:
    """Gaze ``[2]`` in standard deviations for eyes turned by degrees to the viewer's right and up:
    the iris moves by sin(angle) of the eyeball's radius."""
    per_std = MotionBasis.load().directions[GAZE][:, _IRISES, :2].mean(1)
    wanted = _EYEBALL * torch.tensor([math.sin(math.radians(right)), -math.sin(math.radians(up))])
    return torch.linalg.solve(per_std.T, wanted)
