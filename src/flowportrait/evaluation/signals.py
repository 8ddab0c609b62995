"""Signals over time that metrics are made of: facial actions, lids, gaze, mouth opening, loudness.

Heights and widths are measured in the face without its pose, in distances of the outer eye corners.
``action_signals68`` reads the points of the evaluation's own face network, ``action_signals`` those of the tracker,
where that network is not installed.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

from flowportrait.codec.basis import MotionBasis
from flowportrait.codec.pose import fit_pose, median_pose, to_vector
from flowportrait.media.mel import SAMPLES_PER_FRAME

GROUPS = ("mouth", "cheeks", "eyes", "brows")


def remove_pose(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Face shape ``[T, 478, 3]`` with the head's pose removed (eye distances, y down), and head rotation
    ``[T, 3]`` in degrees from the median pose, for landmarks ``[T, 478, 3]`` px without NaN."""
    points = torch.as_tensor(landmarks, dtype=torch.float32)
    pose = fit_pose(points, MotionBasis.load().canonical)
    turn = to_vector(pose, median_pose(pose))[:, :3]
    return pose.remove(points).numpy(), np.degrees(turn.numpy())


def action_signals(shape: np.ndarray) -> dict[str, np.ndarray]:
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


RIGID68 = [36, 39, 42, 45, 27, 28, 29, 30, 33]
"""Eye corners, nose bridge, nose base."""


def action_signals68(points: np.ndarray) -> dict[str, np.ndarray]:
    """Signals ``[T, n]`` of each group from 68 points ``[T, 68, 2]`` px. The 68 have no cheeks: the outline of the jaw
    beside them and the wings of the nose stand for them."""
    face = _align(points.astype(np.float64))
    x, y = face[..., 0], face[..., 1]

    def distance(a: int, b: int) -> np.ndarray:
        return np.linalg.norm(face[:, a] - face[:, b], axis=-1)

    mouth = [distance(62, 66), distance(48, 54), y[:, 48] + y[:, 54] - y[:, 51] - y[:, 57], y[:, 57], y[:, 8]]
    lids = [0.5 * (distance(37, 41) + distance(38, 40)), 0.5 * (distance(43, 47) + distance(44, 46))]
    return {
        "mouth": np.stack(mouth, 1),
        "cheeks": np.stack([x[:, 12] - x[:, 4], x[:, 13] - x[:, 3], distance(31, 35), y[:, 31] + y[:, 35]], 1),
        "eyes": np.stack(lids, 1),
        "brows": np.stack([y[:, 19], y[:, 24], y[:, 21], y[:, 22], distance(21, 22)], 1),
    }


def _align(points: np.ndarray) -> np.ndarray:
    """Points with the head's place, size and roll taken out: each frame is laid on the clip's mean face by its rigid
    points (least-squares similarity), in outer-eye-corner distances."""
    middle = points[:, [36, 45]].mean(1, keepdims=True)
    width = np.linalg.norm(points[:, 36] - points[:, 45], axis=-1)[:, None, None]
    goal = ((points - middle) / width)[:, RIGID68].mean(0)
    goal = goal - goal.mean(0)
    centre = points[:, RIGID68].mean(1, keepdims=True)
    source = points[:, RIGID68] - centre
    power = (source**2).sum((1, 2))
    cos = (source * goal).sum((1, 2)) / power
    sin = (source[..., 0] * goal[:, 1] - source[..., 1] * goal[:, 0]).sum(1) / power
    turn = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], 1)
    return (points - centre) @ turn


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


def loudness(audio: np.ndarray, frames: int, smooth: float = 1.0) -> np.ndarray:
    """Smoothed RMS of 16 kHz samples per video frame ``[frames]``; ``smooth`` is a Gaussian sigma in
    frames."""
    wave = np.zeros(frames * SAMPLES_PER_FRAME)
    wave[: len(audio)] = audio[: len(wave)]
    rms = np.sqrt((wave.reshape(frames, -1) ** 2).mean(1))
    return gaussian_filter1d(rms, smooth, mode="nearest")


def mouth_opening(landmarks: np.ndarray) -> np.ndarray:
    """Inner-lip gap over the distance of the outer eye corners ``[T]`` from landmarks ``[T, 478, 3]``."""
    eyes = np.linalg.norm(landmarks[:, 33, :2] - landmarks[:, 263, :2], axis=-1)
    return np.linalg.norm(landmarks[:, 13, :2] - landmarks[:, 14, :2], axis=-1) / eyes


def longest_run(valid: np.ndarray) -> slice:
    """The longest stretch of consecutive True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], valid.astype(int), [0]])))
    if not len(edges):
        return slice(0, 0)
    starts, stops = edges[::2], edges[1::2]
    longest = int((stops - starts).argmax())
    return slice(int(starts[longest]), int(stops[longest]))
