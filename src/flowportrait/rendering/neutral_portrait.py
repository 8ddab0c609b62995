"""The neutral face of a portrait: what its photo would show with closed lips.

    photo ─► basis.encode: blendshapes say how much of the shape is expression ─► neutral with closed lips
          ─► an impossibly strong expression with closed lips is a face of unusual proportions: part of it stays
          ─► lips that were photographed apart are given back their height

An open mouth stretches its lips and thins them. The part of the opening that blendshapes do not explain was closed by
the edges of the lips alone, which made them up to twice as high as in the photo; the height of each lip is therefore
bounded by that in the photo, and the skin around the lips follows.
"""

from __future__ import annotations

import numpy as np
import torch

from flowportrait.media.portrait import Portrait
from flowportrait.rendering.face_regions import FACE_OVAL, INNER_LOWER, INNER_UPPER, OUTER_LOWER, OUTER_UPPER
from flowportrait.rendering.motion_basis import LOWER_FACE, Identity, MotionBasis, close_lips, lip_pair_gaps

_PLAUSIBLE, _IMPLAUSIBLE = 9.0, 13.0
"""Norms of lower-face motion in standard deviations: below the first, the expression of a photo is removed from its
identity; above the second, it is kept as part of the face. A drawn boy with a doll's proportions measures 13.5. Of
photographed people 11 % lie above the first, nearly all of them smiling or with open mouths."""

_CLOSED, _OPEN = 0.02, 0.06
"""Gaps of the lips in eye distances: below the first a mouth counts as closed, above the second as open. Only faces
with closed mouths may have unusual proportions, because an open mouth explains them."""

_LIP_GROWTH = 1.25
"""Largest height of a closed lip over its height in a photo with an open mouth. Of the same people in the London set,
neutral over smiling, the median is 1.1."""

_STILL_POINTS = [
    2, 98, 327, 94, 129, 358, 152, 148, 377, 199, 200, 175, 171, 396, 50, 280, 205, 425, 187, 411, 214, 434, 6, 4,
]  # fmt: skip
"""Landmarks that do not move when the height of the lips changes: nose, chin, cheeks."""


def portrait_identity(basis: MotionBasis, portrait: Portrait) -> Identity:
    """Return the identity of a portrait: its neutral face with closed lips, whatever its photo shows."""
    motion, identity = basis.encode(portrait.landmarks[None], portrait.blendshapes[None], smooth=False)
    shape = identity.pose.remove(torch.as_tensor(portrait.landmarks[None]))[0]
    opened = mouth_openness(shape)
    length = float(motion[0, LOWER_FACE].norm())
    keep = min(max((length - _PLAUSIBLE) / (_IMPLAUSIBLE - _PLAUSIBLE), 0.0), 1.0) * (1 - opened)
    neutral = identity.neutral
    if keep:
        neutral = close_lips(neutral + keep * (shape - neutral))
    if opened:
        neutral = neutral + opened * (_limit_lip_height(neutral, shape) - neutral)
    return Identity(neutral, identity.pose)


def mouth_openness(shape: torch.Tensor) -> float:
    """Return how open the mouth of a pose-free face ``[478, 3]`` is: zero for closed, one from a clear gap on."""
    gap = float(lip_pair_gaps(shape)[len(INNER_UPPER) // 2 - 1])
    t = min(max((gap - _CLOSED) / (_OPEN - _CLOSED), 0.0), 1.0)
    return t * t * (3 - 2 * t)


def _limit_lip_height(neutral: torch.Tensor, photo: torch.Tensor) -> torch.Tensor:
    """Return the neutral face ``[478, 3]`` with lips no higher than ``_LIP_GROWTH`` times those of the photo's face."""
    target, source = neutral.double().numpy(), photo.double().numpy()
    moved, shifts = [], []
    for inner, outer in ((INNER_UPPER, OUTER_UPPER), (INNER_LOWER, OUTER_LOWER)):
        height, allowed = (np.abs(face[inner, 1] - face[outer, 1]) for face in (target, source))
        excess = (height - _LIP_GROWTH * allowed).clip(0)
        moved += outer[1:-1]
        shifts += list((np.sign(target[inner, 1] - target[outer, 1]) * excess)[1:-1])
    if not any(shifts):
        return neutral
    still = [*INNER_UPPER, *INNER_LOWER[1:-1], OUTER_UPPER[0], OUTER_UPPER[-1], *FACE_OVAL, *_STILL_POINTS]
    still = sorted(set(still) - set(moved))
    controls = [*moved, *still]
    values = np.concatenate([shifts, np.zeros(len(still))])
    result = neutral.clone()
    lower = _below_nose(neutral)
    field = _thin_plate(target[controls, :2], values, target[lower, :2])
    result[lower, 1] += torch.from_numpy(field).float()
    return result


def _below_nose(neutral: torch.Tensor) -> np.ndarray:
    """Return the landmarks of a neutral face ``[478, 3]`` that lie below the base of the nose."""
    below: np.ndarray = (neutral[:, 1] > neutral[2, 1]).numpy()
    return np.flatnonzero(below[:468])


def _thin_plate(points: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return the thin-plate spline through ``values`` ``[N]`` at ``points`` ``[N, 2]``, at places ``at`` ``[M, 2]``."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        square = ((a[:, None] - b[None]) ** 2).sum(-1)
        return 0.5 * square * np.log(square + 1e-12)

    count = len(points)
    plane = np.column_stack([np.ones(count), points])
    system = np.block([[kernel(points, points) + 1e-8 * np.eye(count), plane], [plane.T, np.zeros((3, 3))]])
    weights = np.linalg.solve(system, np.concatenate([values, np.zeros(3)]))
    result: np.ndarray = (
        kernel(at, points) @ weights[:count] + np.column_stack([np.ones(len(at)), at]) @ weights[count:]
    )
    return result
