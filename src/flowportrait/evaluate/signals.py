"""Facial actions as time signals, from landmarks alone: mouth, cheeks, eyes, brows.

Heights and widths in the pose-free face, in outer-eye-corner distances. They come from geometry and not from
the blendshape network that the rewards read.
"""

from __future__ import annotations

import numpy as np
import torch

from flowportrait.codec.basis import MotionBasis
from flowportrait.codec.pose import fit_pose, median_pose, to_vector

GROUPS = ("mouth", "cheeks", "eyes", "brows")


def pose_free(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Face shape ``[T, 478, 3]`` with the head's pose removed (eye distances, y down), and head rotation
    ``[T, 3]`` in degrees from the median pose, for landmarks ``[T, 478, 3]`` px without NaN."""
    points = torch.as_tensor(landmarks, dtype=torch.float32)
    pose = fit_pose(points, MotionBasis.load().canonical)
    turn = to_vector(pose, median_pose(pose))[:, :3]
    return pose.remove(points).numpy(), np.degrees(turn.numpy())


def actions(shape: np.ndarray) -> dict[str, np.ndarray]:
    """Signals ``[T, n]`` of each group from pose-free faces ``[T, 478, 3]``."""
    y = shape[:, :, 1]

    def distance(a: int, b: int) -> np.ndarray:
        return np.linalg.norm(shape[:, a] - shape[:, b], axis=-1)

    mouth = [
        distance(13, 14),
        distance(61, 291),
        y[:, 61] + y[:, 291] - y[:, 0] - y[:, 17],
        y[:, 17],
        y[:, 152],
    ]
    return {
        "mouth": np.stack(mouth, 1),
        "cheeks": np.stack([y[:, 50], y[:, 280], y[:, 205], y[:, 425]], 1),
        "eyes": np.stack([distance(159, 145), distance(386, 374)], 1),
        "brows": np.stack([y[:, 55], y[:, 285], y[:, 105], y[:, 334], distance(55, 285)], 1),
    }


def eye_aperture(shape: np.ndarray) -> np.ndarray:
    """Mean lid distance over eye width ``[T]``."""

    def one(upper: int, lower: int, outer: int, inner: int) -> np.ndarray:
        lids = np.linalg.norm(shape[:, upper, :2] - shape[:, lower, :2], axis=-1)
        return lids / np.linalg.norm(shape[:, outer, :2] - shape[:, inner, :2], axis=-1)

    return 0.5 * (one(159, 145, 33, 133) + one(386, 374, 263, 362))


def gaze(shape: np.ndarray) -> np.ndarray:
    """Iris position relative to the eye's middle, over eye width ``[T, 2]``, mean of both eyes."""

    def one(iris: int, outer: int, inner: int) -> np.ndarray:
        middle = 0.5 * (shape[:, outer, :2] + shape[:, inner, :2])
        width = np.linalg.norm(shape[:, outer, :2] - shape[:, inner, :2], axis=-1)
        return (shape[:, iris, :2] - middle) / width[:, None]

    return 0.5 * (one(468, 33, 133) + one(473, 263, 362))
