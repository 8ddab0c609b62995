"""A face that does not live: no motion at all, eyes that never move, a head that trembles."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from flowportrait.codec.basis import BLINK, GAZE
from flowportrait.corruption.footage import Footage

EYES = (
    np.array([33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7]),
    np.array([263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249]),
)
"""Landmarks around each eye."""
CORNERS = ((33, 133), (263, 362))
EYE_MARGIN = 1.5


def still(clip: Footage, share: float, seed: int = 0) -> Footage:
    """Pictures stand still for ``share`` of the clip, from its beginning: 1 is a photo."""
    times = np.arange(len(clip))
    return clip.at(np.where(times < share * len(clip), 0, times).astype(float))


def less_lively(clip: Footage, share: float, seed: int = 0) -> Footage:
    """A tired face: everything moves slower by ``share``; 1 is a photo, and nothing fits its sound any more."""
    return clip.at(np.arange(len(clip)) * (1.0 - share))


def frozen_eyes(clip: Footage, share: float, seed: int = 0) -> Footage:
    """Eyes of the first frame, moved along with the head, for ``share`` of the clip: no blink, no glance.

    Raises:
        BadInput: frames without landmarks.
    """
    until = round(share * len(clip))
    frames, motion, points = clip.frames, clip.motion, clip.landmarks
    if motion is not None:
        motion = motion.copy()
        motion[:until, BLINK], motion[:until, GAZE] = motion[0, BLINK], motion[0, GAZE]
    if frames is not None:
        track = clip.points("frozen eyes")
        frames = frames.copy()
        for index in range(1, until):
            for around, corners in zip(EYES, CORNERS, strict=True):
                frames[index] = _eye_pasted(
                    clip.pictures("frozen eyes")[0], frames[index], track[0], track[index], around, corners
                )
    if points is not None:
        points = points.copy()
        for around, corners in zip(EYES, CORNERS, strict=True):
            for index in range(1, until):
                matrix = _similarity(points[0, corners, :2], points[index, corners, :2])
                points[index, around, :2] = points[0, around, :2] @ matrix[:, :2].T + matrix[:, 2]
    return replace(clip, frames=frames, motion=motion, landmarks=points)


def jitter(clip: Footage, pixels: float, seed: int = 0) -> Footage:
    """The picture jumps by a normal ``pixels`` in x and y, anew in every frame; landmarks go with it."""
    moves = np.random.default_rng(seed).normal(0, pixels, (len(clip), 2))
    frames, points = clip.frames, clip.landmarks
    if frames is not None:
        frames = np.stack(
            [
                cv2.warpAffine(
                    frame,
                    np.array([[1, 0, x], [0, 1, y]]),
                    frame.shape[1::-1],
                    flags=cv2.INTER_CUBIC,
                    borderMode=cv2.BORDER_REPLICATE,
                )
                for frame, (x, y) in zip(frames, moves, strict=True)
            ]
        )
    if points is not None:
        points = points.copy()
        points[..., :2] += moves[:, None]
    return replace(clip, frames=frames, landmarks=points)


def _similarity(source: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """``[2, 3]`` that takes two points to two points."""
    a, b = source[1] - source[0], goal[1] - goal[0]
    cos, sin = np.array([a @ b, a[0] * b[1] - a[1] * b[0]]) / max(float(a @ a), 1e-9)
    turn = np.array([[cos, -sin], [sin, cos]])
    return np.hstack([turn, (goal[0] - turn @ source[0])[:, None]])


def _eye_pasted(
    source: np.ndarray,
    frame: np.ndarray,
    there: np.ndarray,
    here: np.ndarray,
    around: np.ndarray,
    corners: tuple[int, int],
) -> np.ndarray:
    """``frame`` with one eye of ``source`` laid over its own, softly, by the eye's corners."""
    matrix = _similarity(there[list(corners), :2], here[list(corners), :2])
    height, width = frame.shape[:2]
    middle = here[list(corners), :2].mean(0)
    reach = EYE_MARGIN * np.linalg.norm(here[corners[0], :2] - here[corners[1], :2])
    if not np.isfinite(reach):
        return frame
    left, top = np.floor(middle - reach).astype(int).clip(0)
    right, bottom = np.ceil(middle + reach).astype(int).clip(max=[width, height])
    if right <= left or bottom <= top:
        return frame
    local = matrix.copy()
    local[:, 2] -= (left, top)
    box = (int(right - left), int(bottom - top))
    moved = cv2.warpAffine(source, local, box, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    y, x = np.mgrid[top:bottom, left:right]
    distance = np.hypot((x - middle[0]) / reach, (y - middle[1]) / (0.6 * reach)) * 2
    weight = (1.8 - distance).clip(0, 0.5)[..., None] / 0.5
    result = frame.copy()
    under = result[top:bottom, left:right]
    result[top:bottom, left:right] = (weight * moved + (1 - weight) * under).round().astype(np.uint8)
    return result
