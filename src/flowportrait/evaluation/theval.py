"""The measures of THEval (arXiv 2511.04520) that need no further network: five of eight.

    score = 1 − |m − GT| / |GT|          total = mean of the scores            m, GT: means over clips

| lip dynamics | mean over pairs of lip points of the temporal spread of their distance, picture scaled to 256 px |
| head motion  | √( mean spread of pitch, yaw, roll · mean variance of their steps + mean variance of the place ) |
| brows        | mean step between frames of the brow–eye distance over the distance of the eyes |
| silent lip   | median distance of the lip opening from its mean in silences of 0.3 s and more |
| lip sync     | mean | minmax(opening) − minmax(loudness) | where somebody speaks |

Left out, because their networks must be downloaded: global aesthetics (TOPIQ-IAA), mouth quality (MUSIQ), face quality
(TOPIQ-face). So the total is called THEval-5. Angles come from landmarks and not from FaceXFormer, speech from loudness
and not from Silero, so values compare with the ground truth of the same run and not with the paper's.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.ndimage import binary_opening

from flowportrait.evaluation.behaviour import silent_frames
from flowportrait.evaluation.signals import loudness
from flowportrait.evaluation.tracking import VideoTracks

MEASURES = ("lip_dynamics", "head_motion", "brow_dynamics", "silent_lip_stability", "lip_sync")
LEFT_OUT = ("global aesthetics (TOPIQ-IAA)", "mouth quality (MUSIQ)", "face quality (TOPIQ-face)")
TOTAL = f"THEval-{len(MEASURES)}"
SIDE = 256
SILENCE_FRAMES = 8
MIN_SPEECH = 0.1
UPPER = [191, 80, 81, 82, 13, 312, 311, 310]
LOWER = [95, 88, 178, 87, 14, 317, 402, 318]
LIPS = sorted(
    {61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409, 78, 308, 415, 324}
    | set(UPPER)
    | set(LOWER)
)
EYES = (
    [33, 7, 163, 144, 145, 153, 154, 155, 133, 246, 161, 160, 159, 158, 157, 173],
    [263, 249, 390, 373, 374, 380, 381, 382, 362, 466, 388, 387, 386, 385, 384, 398],
)
BROWS = ([46, 53, 52, 65, 55, 70, 63, 105, 66, 107], [276, 283, 282, 295, 285, 300, 293, 334, 296, 336])


def measures(tracked: VideoTracks, turn: np.ndarray) -> dict[str, float]:
    """Those of the five measures that a clip allows; ``turn`` is ``[V, 3]`` degrees of its valid frames."""
    points = tracked.landmarks[tracked.valid][..., :2].astype(np.float64)
    if len(points) < 3:
        return {}
    points = points * (SIDE / float(max(tracked.size)))
    found = {
        "lip_dynamics": lip_dynamics(points[:, LIPS]),
        "head_motion": head_motion(turn, points.mean(1)),
        "brow_dynamics": brow_dynamics(points),
    }
    if not len(tracked.audio):
        return found
    opening, frames = lip_opening(points), len(tracked)
    silent = silent_frames(tracked.audio, frames)
    speaks = ~silent
    quiet = binary_opening(silent, np.ones(SILENCE_FRAMES))[tracked.valid]
    if quiet.sum() >= 2:
        found["silent_lip_stability"] = silent_lip_stability(opening[quiet])
    speech = speaks[tracked.valid]
    if speaks.mean() >= MIN_SPEECH and speech.sum() >= 2:
        loud = loudness(tracked.audio, frames, 0.5)[tracked.valid]
        found["lip_sync"] = lip_sync(opening[speech], loud[speech])
    return found


def lip_dynamics(lips: np.ndarray) -> float:
    """Mean spread over time of the distances between lip points ``[T, n, 2]``, in pixels of a 256 px picture."""
    pairs = np.array(list(combinations(range(lips.shape[1]), 2)))
    distance = np.linalg.norm(lips[:, pairs[:, 0]] - lips[:, pairs[:, 1]], axis=-1)
    return float(distance.std(0).mean())


def head_motion(turn: np.ndarray, place: np.ndarray) -> float:
    """Head motion from angles ``[T, 3]`` in degrees and the face's place ``[T, 2]`` in pixels of a 256 px picture."""
    spread, steps = turn.std(0).mean(), np.diff(turn, axis=0).var(0).mean()
    return float(np.sqrt(spread * steps + place.var(0).mean()))


def brow_dynamics(points: np.ndarray) -> float:
    """Mean step of the brow–eye distance between frames, from landmarks ``[T, 478, 2]``."""
    eyes = [points[:, eye].mean(1) for eye in EYES]
    scale = np.linalg.norm(eyes[0] - eyes[1], axis=-1)
    raised = [np.linalg.norm(points[:, b].mean(1) - e, axis=-1) / scale for b, e in zip(BROWS, eyes, strict=True)]
    return float(np.mean([np.abs(np.diff(track)).mean() for track in raised]))


def lip_opening(points: np.ndarray) -> np.ndarray:
    """Mean height of the inner lips over the outer-eye distance ``[T]``, of landmarks ``[T, 478, 2]``."""
    eyes = np.linalg.norm(points[:, 33] - points[:, 263], axis=-1)
    return np.abs(points[:, UPPER, 1] - points[:, LOWER, 1]).mean(1) / eyes


def silent_lip_stability(opening: np.ndarray) -> float:
    """Median distance of lip openings ``[n]`` in silence from their mean."""
    return float(np.median(np.abs(opening - opening.mean())))


def lip_sync(opening: np.ndarray, loud: np.ndarray) -> float:
    """Mean difference of lip opening and loudness ``[n]``, both scaled to 0 … 1, on frames with speech."""
    return float(np.abs(_unit(opening) - _unit(loud)).mean())


def _unit(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (np.ptp(values) + 1e-8)


def score(measured: float, truth: float) -> float:
    """Score of a measure against the ground truth: 1 − |m − GT| / |GT|."""
    return 1 - abs(measured - truth) / abs(truth)


def total(measured: dict[str, float], truth: dict[str, float]) -> tuple[float, dict[str, float]] | None:
    """Unweighted mean of the scores of the measures that both have, and each score; ``None`` without any."""
    scores = {name: score(measured[name], truth[name]) for name in MEASURES if name in measured and truth.get(name)}
    return (float(np.mean(list(scores.values()))), scores) if scores else None
