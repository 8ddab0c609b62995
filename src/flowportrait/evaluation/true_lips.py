"""Lips against the speaker's true lips, where these are known.

    distance      mean ‖ p − p_real ‖ over the points of lips and jaw, head pose removed        (% of eye distance)
    motion        the same for the deviation of every point from its mean over the clip
    opening       correlation over time of the opening of the lips; ratio of its standard deviations
    closure       share of the sounds p, b and m at which the lips come together

Sync networks reward large motion as well as right motion; these do not. A still face has a correlation of 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowportrait.evaluation.joins import scored_stretches
from flowportrait.evaluation.metrics import MetricRow
from flowportrait.evaluation.motion_metrics import mouth_opening, remove_pose
from flowportrait.evaluation.tracking import VideoTracks

LIP_POINTS = [
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409,
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415,
]  # fmt: skip
"""Outer and inner lips among MediaPipe's landmarks."""
LOWER_FACE_POINTS = [*LIP_POINTS, 152, 148, 176, 149, 377, 400, 378]
"""The lips and the chin."""
MIN_OPENING_SPREAD = 1e-3
"""Standard deviation of the opening, in eye distances, below which lips count as still."""
CLOSED_OPENING = 0.03
"""Opening in eye distances below which lips count as closed."""
CLOSURE_REACH = 2
"""Frames before and after a sound within which the lips must close."""


def compare_lips(clip: VideoTracks, real: VideoTracks) -> MetricRow:
    """Compare the lips of a clip with the true ones, over the frames that both have.

    Args:
        clip: tracks of the clip.
        real: tracks of the real clip.

    Returns:
        ``lower_face_distance`` and ``lip_motion_distance`` in % of the eye distance, ``opening_correlation``, and
        ``opening_ratio``, 1 where lips open as far as the speaker's; nothing where too few frames show both faces.
    """
    length = min(len(clip), len(real))
    both = clip.valid[:length] & real.valid[:length]
    if both.sum() < 2:
        return {}
    shapes = [remove_pose(tracked.landmarks[:length][both])[0][:, LOWER_FACE_POINTS, :2] for tracked in (clip, real)]
    moved = [shape - shape.mean(0) for shape in shapes]
    openings = [mouth_opening(tracked.landmarks[:length][both]) for tracked in (clip, real)]
    spreads = [float(opening.std()) for opening in openings]
    row: MetricRow = {
        "lower_face_distance": _mean_distance(*shapes),
        "lip_motion_distance": _mean_distance(*moved),
    }
    if spreads[1] > MIN_OPENING_SPREAD:
        moving = spreads[0] > MIN_OPENING_SPREAD
        row["opening_correlation"] = float(np.corrcoef(openings[0], openings[1])[0, 1]) if moving else 0.0
        row["opening_ratio"] = spreads[0] / spreads[1]
    return row


def _mean_distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(100 * np.linalg.norm(one - other, axis=-1).mean())


def closure_frames(words: Sequence[tuple[float, float, str]]) -> list[int]:
    """Return the frames at which the lips close for p, b or m.

    Word alignments say where a word begins and ends, so only sounds there are known: words that begin with p, b or m,
    the letters b and p, and the letter m, which ends with closed lips.

    Args:
        words: begin and end in frames, and the word.
    """
    frames = []
    for begin, end, word in words:
        if word == "m":
            frames.append(round(end))
        elif word[0] in "bpm":
            frames.append(round(begin))
    return sorted(frames)


def measure_closure(tracked: VideoTracks, frames: Sequence[int], joins: Sequence[int] = ()) -> MetricRow:
    """Measure whether the lips come together at the sounds that need it.

    Args:
        tracked: tracks of the clip.
        frames: where the lips should close.
        joins: where the clip is joined; sounds that are not scored do not count.

    Returns:
        ``closure``, the share of the sounds with an opening below 0.03 eye distances within two frames;
        ``closure_gap``, the mean smallest opening there in % of the eye distance; ``closure_sounds``, their number.
        Nothing without such a sound.
    """
    opening = mouth_opening(tracked.landmarks)
    stretches = scored_stretches(len(tracked), joins)
    gaps = []
    for frame in frames:
        around = slice(max(0, frame - CLOSURE_REACH), frame + CLOSURE_REACH + 1)
        inside = any(stretch.start <= around.start and around.stop <= stretch.stop for stretch in stretches)
        if inside and tracked.valid[around].any():
            gaps.append(float(np.nanmin(opening[around])))
    if not gaps:
        return {}
    closed = float(np.mean(np.array(gaps) < CLOSED_OPENING))
    return {"closure": closed, "closure_gap": 100 * float(np.mean(gaps)), "closure_sounds": len(gaps)}
