"""Emotions that are laid over speech: a constant change of brows, lids, cheeks and the corners of the mouth.

    motion + Σ weight · direction(emotion)         weights in [0, 1], direction [30]

``happy`` is learned: the mean difference between the smiling and the neutral photo of the same person, over the
training people of the Face Research Lab London Set (``tools/fit_emotion.py``). The others are combinations of facial
action units, as published for prototypical expressions (Du, Tao and Martinez 2014, "Compound facial expressions of
emotion", PNAS 111, table 1; Friesen and Ekman 1983, EMFACS), on the ARKit shapes that correspond to them. Cheek raiser
(unit 6) and nose wrinkler (9) have no visible counterpart in the motion basis and are missing, and so is disgust, which
depends on them.

The same motion is made left and right, and the mean opening of the lips is left as the speech wants it: of all changes
with that property the one that is nearest to the emotion in landmarks is used. So lips still close at p, b and m.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch

from flowportrait.devices import read_weights
from flowportrait.errors import BadInput
from flowportrait.files import shipped_weights
from flowportrait.rendering.motion_basis import (
    EXPRESSION,
    LOWER_FACE,
    MOTION_DIM,
    MotionBasis,
    lip_pair_gaps,
    mirror_matrix,
)
from flowportrait.rendering.motion_files import ARKIT_SHAPES, blendshapes_to_motion

_ACTION_UNITS: dict[str, dict[str, float]] = {
    # Units 1 + 4 + 15 (+ 17); the lids droop.
    "sad": {"browInnerUp": 1.0, "browDown": 0.15, "mouthFrown": 0.5, "mouthShrugLower": 0.2, "eyeBlink": 0.12},
    # 4 + 7 + 24; unit 7 tightens the lids, for which the basis has the blink alone.
    "angry": {"browDown": 1.0, "eyeBlink": 0.15, "mouthPress": 0.2, "mouthFrown": 0.2},
    # 1 + 2 + 5; units 25 and 26 open the lips and the jaw, which is left to the speech.
    "surprised": {"browInnerUp": 0.8, "browOuterUp": 0.8, "eyeWide": 0.4},
    # 1 + 2 + 4 + 5 + 20, without 25.
    "afraid": {"browInnerUp": 1.0, "browOuterUp": 0.1, "browDown": 0.3, "eyeWide": 0.4, "mouthStretch": 0.2},
}
"""Weights of ARKit shapes for each emotion; a name without a side stands for both sides."""

EMOTIONS = ("happy", *_ACTION_UNITS)
"""Names of the emotions."""


def check_emotion(weights: Mapping[str, float], text: str | None = None) -> None:
    """Check the names and weights of emotions.

    Args:
        weights: weight by name.
        text: the weight as the user wrote it, for the message.

    Raises:
        BadInput: a name is unknown, a weight lies outside 0 to 1, or the weights together are over 1.
    """
    for name, weight in weights.items():
        if name not in EMOTIONS:
            raise BadInput(f"The emotion {name!r} is unknown: choose from {', '.join(EMOTIONS)}, such as happy=0.6.")
        if not (math.isfinite(weight) and 0 <= weight <= 1):
            written = f"{weight:g}" if text is None else text
            raise BadInput(f"The emotion {name}={written} is not possible: give a weight from 0 to 1.")
    if sum(weights.values()) > 1 + 1e-6:
        raise BadInput(f"The weights of the emotions add up to {sum(weights.values()):g}: give 1 or less in all.")


def emotion_offset(weights: Mapping[str, float]) -> torch.Tensor:
    """Return what emotions of these weights add to motion, ``[30]``.

    Raises:
        BadInput: a name or a weight is not possible.
    """
    check_emotion(weights)
    offset = torch.zeros(MOTION_DIM)
    for name, weight in weights.items():
        offset += weight * emotion_direction(name)
    return offset


@lru_cache(maxsize=len(EMOTIONS))
def emotion_direction(name: str) -> torch.Tensor:
    """Return the motion ``[30]`` of an emotion at full weight; it does not change the mean opening of the lips."""
    expression = torch.zeros(MOTION_DIM)
    if name == "happy":
        expression[EXPRESSION] = read_weights(shipped_weights("emotion/model.safetensors"))["happy"]
    else:
        expression[EXPRESSION] = blendshapes_to_motion(_shape_weights(_ACTION_UNITS[name]))[0]
    direction = (expression + expression @ mirror_matrix(MotionBasis.load())) / 2
    direction[LOWER_FACE] = direction[LOWER_FACE] @ _mean_gap_projection()
    return direction


def _shape_weights(units: Mapping[str, float]) -> np.ndarray:
    """Return shape weights ``[1, 51]``."""
    weights = np.zeros((1, len(ARKIT_SHAPES)))
    for name, weight in units.items():
        for shape in (name,) if name in ARKIT_SHAPES else (f"{name}Left", f"{name}Right"):
            weights[0, ARKIT_SHAPES.index(shape)] = weight
    return weights


@lru_cache(maxsize=1)
def _mean_gap_projection() -> torch.Tensor:
    """Return the matrix ``[16, 16]`` that turns lower-face motion into the nearest one, by landmarks, which leaves the
    mean of the nine lip gaps unchanged.

    Minimising (x − v) W (x − v)ᵀ under x g = 0 gives x = v (I − g gᵀW⁻¹ / gᵀW⁻¹g), with W the Gram matrix of the
    directions and g the mean gap of each.
    """
    directions = MotionBasis.load().directions[LOWER_FACE]
    flat = directions.flatten(1).double()
    gap = lip_pair_gaps(directions).double().mean(1)
    solved = torch.linalg.solve(flat @ flat.T, gap)
    return (torch.eye(len(gap), dtype=torch.float64) - torch.outer(gap, solved) / (gap @ solved)).float()
