"""Clips that are joined from several recordings: what of them is measured.

    frames   0 ········ 29 | 30 ········ 59 | 60 ········ 89       joins at 30 and 60
    scored   ■■■■■■■■□□□□□ | □□□□□■■□□□□□□□ | …                    a quarter of a second on each side of a join is not

At a join the real picture jumps and the sound changes within a frame, which says nothing about a generator. Metrics of
motion are measured on every stretch between the joins and averaged by their frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.evaluation.metrics import MetricRow
from flowportrait.evaluation.tracking import VideoTracks
from flowportrait.media.audio import SAMPLES_PER_FRAME

JOIN_MARGIN_FRAMES = 6
"""Frames on each side of a join that are not scored: together half a second."""
MIN_STRETCH_FRAMES = 12
"""Fewest frames of a stretch that is measured."""
COUNTED = ("compared_frames", "silent_frames", "blinks")
"""Entries of a row that are added up over stretches."""


def read_joins(text: str, clip: str) -> tuple[int, ...]:
    """Return the frames at which a clip is joined from a text such as ``29;58;87``.

    Raises:
        BadInput: it is not such a list of rising frame numbers.
    """
    try:
        joins = tuple(int(word) for word in text.replace(";", " ").split())
    except ValueError as error:
        raise BadInput(f"The joins of {clip} are {text!r}: write frame numbers such as 29;58;87.") from error
    if any(place <= 0 for place in joins) or list(joins) != sorted(set(joins)):
        raise BadInput(f"The joins of {clip} are {text!r}: write rising frame numbers, each above 0.")
    return joins


def scored_frames(frames: int, joins: Sequence[int]) -> np.ndarray:
    """Return which frames ``[frames]`` are scored: those that are not within a quarter of a second of a join."""
    scored = np.ones(frames, bool)
    for place in joins:
        scored[max(0, place - JOIN_MARGIN_FRAMES) : place + JOIN_MARGIN_FRAMES] = False
    return scored


def scored_stretches(frames: int, joins: Sequence[int]) -> list[slice]:
    """Return the stretches of scored frames that are long enough to be measured; the whole clip without joins."""
    if not joins:
        return [slice(0, frames)]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], scored_frames(frames, joins).astype(int), [0]])))
    stretches = [slice(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
    return [one for one in stretches if one.stop - one.start >= MIN_STRETCH_FRAMES]


def cut_tracks(tracked: VideoTracks, stretch: slice) -> VideoTracks:
    """Return the tracks of a stretch of a video."""
    if stretch == slice(0, len(tracked)):
        return tracked
    steps = slice(stretch.start, max(stretch.start, stretch.stop - 1))
    inside = (tracked.crop_at >= stretch.start) & (tracked.crop_at < stretch.stop)
    return replace(
        tracked,
        **{name: getattr(tracked, name)[stretch] for name in ("landmarks", "blendshapes", "valid", "mouth", "skin")},
        points=tracked.points[stretch] if len(tracked.points) else tracked.points,
        flow=tracked.flow[steps],
        still=tracked.still[steps],
        crops=tracked.crops[inside],
        crop_at=tracked.crop_at[inside] - stretch.start,
        audio=tracked.audio[SAMPLES_PER_FRAME * stretch.start : SAMPLES_PER_FRAME * stretch.stop],
    )


def longest_stretch(tracked: VideoTracks, joins: Sequence[int]) -> VideoTracks:
    """Return the tracks of the longest stretch of a joined video; of no frame if none is long enough."""
    stretches = scored_stretches(len(tracked), joins)
    return cut_tracks(tracked, max(stretches, key=lambda one: one.stop - one.start, default=slice(0, 0)))


def mean_over_stretches(
    tracked: VideoTracks, joins: Sequence[int], measure: Callable[[VideoTracks], MetricRow]
) -> MetricRow:
    """Return what ``measure`` returns for a video; of a joined one the mean over its stretches by their frames."""
    parts = [cut_tracks(tracked, stretch) for stretch in scored_stretches(len(tracked), joins)]
    return join_rows([(len(part), measure(part)) for part in parts if part.valid.any()])


def join_rows(rows: Sequence[tuple[int, MetricRow]]) -> MetricRow:
    """Return the mean by weight of rows of numbers; what a row lacks does not count, and counts are added up."""
    if len(rows) == 1:
        return dict(rows[0][1])
    joined: MetricRow = {}
    for key in dict.fromkeys(key for _, row in rows for key in row):
        known = [(weight, float(value)) for weight, row in rows if (value := row.get(key)) is not None]
        if not known:
            joined[key] = None
        elif key in COUNTED:
            joined[key] = sum(value for _, value in known)
        else:
            joined[key] = sum(weight * value for weight, value in known) / sum(weight for weight, _ in known)
    return joined
