"""Left and right exchanged, directly on motion:  motion' = motion @ M.

Landmark i's mirror image is the landmark nearest to it on the mirrored canonical head.
"""

from __future__ import annotations

import torch

from flowportrait.codec.basis import BLINK, BROWS, GAZE, HEAD, LOWER, MOTION_DIM, MotionBasis

_FLIP = torch.tensor([-1.0, 1.0, 1.0])
_HEAD_SIGN = torch.tensor([1.0, -1.0, -1.0, -1.0, 1.0, 1.0])
"""Rotation vector (x, y, z), shift (x, y) and scale under x → −x."""


def partners(canonical: torch.Tensor) -> torch.Tensor:
    """For each landmark of a head ``[478, 3]`` the index of its mirror partner ``[478]``."""
    return torch.cdist(canonical * _FLIP, canonical).argmin(1)


def mirror_matrix(basis: MotionBasis) -> torch.Tensor:
    """``[30, 30]`` such that ``motion @ M`` is the motion seen in a mirror."""
    seen = (basis.directions * _FLIP)[:, partners(basis.canonical)].flatten(1)
    matrix = torch.zeros(MOTION_DIM, MOTION_DIM)
    for part in (LOWER, BROWS):
        own = basis.directions[part].flatten(1)
        matrix[part, part] = torch.linalg.lstsq(own.T, seen[part].T).solution.T
    matrix[BLINK, BLINK] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    matrix[GAZE, GAZE] = torch.diag(torch.tensor([-1.0, 1.0]))
    matrix[HEAD, HEAD] = torch.diag(_HEAD_SIGN)
    return matrix
