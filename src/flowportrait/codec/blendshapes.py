"""Motion ⇄ ARKit blendshapes, so that a person can read a performance and edit it.

    motion[:24] ≈ weights @ table          weights [T, 51] in [0, 1],  table [51, 24], learned with the basis

A shape moves only its own part of the face: mouth and jaw shapes the lower face, brow shapes the brows, eye shapes
lids and gaze (a blink its own lid alone). The way back is a non-negative least-squares fit per frame; what 51 shapes
cannot say of a frame stays beside them as its ``detail``, so that nothing is lost.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from flowportrait.codec.basis import BLINK, BROWS, EXPRESSION, GAZE, LOWER, MotionBasis
from flowportrait.codec.contours import EYES

SHAPES = (
    "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff",
    "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight",
    "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight",
    "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft",
    "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight",
)  # fmt: skip
"""ARKit's shapes in MediaPipe's order. The 52nd, ``tongueOut``, is seen by no tracker here and left out."""

_RIDGE = 0.7
"""Weight, in standard deviations of motion, that a shape must earn: of two shapes alike neither runs off."""


@lru_cache(maxsize=1)
def table() -> torch.Tensor:
    """Motion ``[51, 24]`` that each shape at full weight stands for."""
    basis = MotionBasis.load()
    rows = (basis.from_blendshapes @ basis.readout.T)[1:]
    allowed = torch.zeros_like(rows)
    for row, name in enumerate(SHAPES):
        parts = (BROWS,) if name.startswith("brow") else (BLINK, GAZE) if name.startswith("eye") else (LOWER,)
        for part in parts:
            allowed[row, part] = 1.0
    rows = rows * allowed
    # Footage hardly ever winks, so which lid is which is taken from geometry: each blink shuts its own eye.
    lids = torch.stack([_lid_gap(basis.directions[BLINK], side) for side in (1, 0)], 1)
    open_lids = torch.stack([_lid_gap(basis.canonical, side) for side in (1, 0)])
    for eye, name in enumerate(("eyeBlinkLeft", "eyeBlinkRight")):
        wanted = torch.zeros(2)
        wanted[eye] = -open_lids[eye]
        rows[SHAPES.index(name)] = 0
        rows[SHAPES.index(name), BLINK] = torch.linalg.solve(lids.T, wanted)
    return rows


def _lid_gap(faces: torch.Tensor, side: int) -> torch.Tensor:
    upper, lower, _ = EYES[side]
    return faces[..., lower[4], 1] - faces[..., upper[4], 1]


def to_motion(weights: np.ndarray) -> torch.Tensor:
    """Expression ``[T, 24]`` of shape weights ``[T, 51]``."""
    return torch.as_tensor(weights, dtype=torch.float32) @ table()


def from_motion(expression: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    """Weights ``[T, 51]`` in [0, 1] and detail ``[T, 24]`` with ``to_motion(weights) + detail == expression``."""
    from scipy.optimize import nnls

    columns = table().double().numpy().T
    left = np.vstack([columns, _RIDGE * np.eye(len(SHAPES))])
    zeros = np.zeros(len(SHAPES))
    wanted = expression[:, EXPRESSION].double().numpy()
    weights = np.stack([nnls(left, np.concatenate([frame, zeros]))[0] for frame in wanted]).clip(0, 1)
    return weights, expression[:, EXPRESSION] - to_motion(weights)
