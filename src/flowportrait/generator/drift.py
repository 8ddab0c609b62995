"""Drift of long motion sequences: does a face that talks for minutes stay the face it was?

    place of a group g in stretch m      p[m] = mean over its frames of motion[g]
    shift                                ‖p[m] − p[1]‖ / √dim g            grows with m where motion drifts
    head reach                           99 % quantile of ‖head‖ / √6      grows where it wanders
    still                                share of seconds whose motion is under a fifth of what is usual

All in standard deviations of real footage, as motion is.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from flowportrait.codec import lips
from flowportrait.codec.basis import BLINK, BROWS, GAZE, HEAD, LOWER, MOTION_DIM, MotionBasis
from flowportrait.media.video import FPS

GROUPS = {"lower face": LOWER, "brows": BROWS, "lids": BLINK, "gaze": GAZE, "head": HEAD}
STILL = 0.2


@lru_cache(maxsize=1)
def lip_gap() -> torch.Tensor:
    """How far each motion number opens the lips ``[30]``, in outer-eye-corner distances, mean over the lip."""
    opening = lips.gap(MotionBasis.load().directions).mean(-1)
    return torch.cat([opening, torch.zeros(MOTION_DIM - len(opening))])


def liveliness(motion: torch.Tensor) -> torch.Tensor:
    """Mean spread of the 30 numbers within each whole second ``[B, S]`` of motion ``[B, T, 30]``."""
    seconds = motion[:, : motion.shape[1] // FPS * FPS].unflatten(1, (-1, FPS))
    return seconds.std(2).mean(-1)


def drift_figures(motion: torch.Tensor, stretch: int, usual: float) -> dict[str, torch.Tensor]:
    """Figures ``[B, M]`` by name of every stretch of so many frames of motion ``[B, T, 30]``; ``usual`` is the
    liveliness that ``still`` is compared with."""
    parts = motion[:, : motion.shape[1] // stretch * stretch].unflatten(1, (-1, stretch))
    place = parts.mean(2)
    shift = place - place[:, :1]
    figures = {f"shift of {name}": _size(shift[..., group]) for name, group in GROUPS.items()}
    head = _size(parts[..., HEAD])
    quiet = liveliness(parts.flatten(0, 1)).unflatten(0, parts.shape[:2]) < STILL * usual
    return figures | {
        "head reach": head.quantile(0.99, 2),
        "head spread": parts[..., HEAD].std(2).mean(-1),
        "lip spread": (parts @ lip_gap()).std(2),
        "still": quiet.float().mean(2),
    }


def _size(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean(-1).sqrt()
