"""From lists of times and pictures to figures: late frames, moving lips, resting lips, sound against picture.

    late frame    arrived (was shown) more than 40 ms after its place in an even row of 25 a second
    moving lips   the opening of the mouth leaves the range that it has while the face idles
    offset        best shift of the sync expert; or click time − flash time

Nothing here knows a browser; ``tests/project/test_benchmark_live.py`` has cases with known answers.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.video import FPS

FRAME_MS = 1000 / FPS
LATE_MS = 40.0
"""Lateness above which a frame counts as late: one frame."""
IDLE_RANGE = 6.0
"""How many (robust) standard deviations of the idle mouth count as movement."""
LEAST_MOVEMENT = 0.01
"""Least change of the opening that counts as movement, in distances of the outer eye corners; speech opens by 0.1."""
STEADY_FRAMES = 3
"""Frames in a row that a movement must last: the tracker errs in single ones."""


# --- Late frames ------------------------------------------------------------------------


@dataclass(frozen=True)
class Punctuality:
    """How evenly frames came.

    Attributes:
        frames: places of an even row of 25 a second from the first frame to the last.
        missing: share of the places for which no frame was shown.
        late_received: share of the places whose frame arrived late or never.
        late_shown: the same of the time at which it was shown.
        longest_gap: longest time in ms between two shown frames.
        drift: change of the lateness in ms per hour, by a line through its medians of 10 s; 0 within a minute.
    """

    frames: int
    missing: float
    late_received: float
    late_shown: float
    longest_gap: float
    drift: float


def measure_punctuality(due: np.ndarray, received: np.ndarray, shown: np.ndarray, late: float = LATE_MS) -> Punctuality:
    """Compare when frames arrived and were shown with their media time.

    The even row is placed so that the median frame is in time. A jitter buffer that grows moves all later frames, which
    nobody sees; so what is shown is compared with the median of the 10 s around it.

    Args:
        due: media time of every shown frame in ms, ``[n]``.
        received: when it arrived, in ms.
        shown: when it was shown, in ms.
        late: milliseconds above which it is late.
    """
    order = np.argsort(due, kind="stable")
    due, received, shown = due[order], received[order], shown[order]
    places = np.round((due - due[0]) / FRAME_MS).astype(int)
    count = int(places[-1]) + 1
    first = np.unique(places, return_index=True)[1]
    arrived, seen, row = received[first] - due[first], shown[first] - due[first], due[first]
    missing = count - len(first)
    blocks = ((row - row[0]) // 10_000).astype(int)
    medians = np.array([np.median(seen[blocks == block]) for block in np.unique(blocks)])
    usual = np.interp(blocks, np.unique(blocks), medians)
    drift = 0.0
    if len(medians) >= 6:
        by_block = np.array([np.median(arrived[blocks == block]) for block in np.unique(blocks)])
        drift = float(np.polyfit(np.unique(blocks) * 10 / 3600, by_block, 1)[0])
    return Punctuality(
        count,
        missing / count,
        (missing + int((arrived - np.median(arrived) > late).sum())) / count,
        (missing + int((seen - usual > late).sum())) / count,
        float(np.diff(np.sort(shown)).max()) if len(shown) > 1 else 0.0,
        drift,
    )


# --- Lips -------------------------------------------------------------------------------


def measure_mouths(pictures: Sequence[bytes]) -> np.ndarray:
    """Return the opening of the mouth ``[n]`` in JPEG pictures, in distances of the outer eye corners.

    It is NaN where a picture shows no face.
    """
    from PIL import Image

    from flowportrait.evaluation.measure import lip_opening
    from flowportrait.media.faces import FaceTracker

    with FaceTracker() as tracker:
        faces = tracker.track([np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")) for picture in pictures])
    return lip_opening(faces.landmarks[..., :2].astype(float))


@dataclass(frozen=True)
class RestingMouth:
    """The opening of a mouth while the face idles.

    Attributes:
        middle: its median.
        limit: distance from it above which the lips move.
    """

    middle: float
    limit: float

    @classmethod
    def from_idle(cls, openings: np.ndarray) -> RestingMouth:
        """Measure the openings ``[n]`` of idle frames."""
        known = openings[np.isfinite(openings)]
        middle = float(np.median(known))
        deviation = 1.4826 * float(np.median(np.abs(known - middle)))
        return cls(middle, max(IDLE_RANGE * deviation, LEAST_MOVEMENT))

    def moves(self, openings: np.ndarray) -> np.ndarray:
        """Return for openings ``[n]`` whether the lips are away from rest."""
        return np.abs(openings - self.middle) > self.limit


def first_movement(times: np.ndarray, moves: np.ndarray) -> float | None:
    """Return the time of the first of ``STEADY_FRAMES`` moving frames at times ≥ 0; None if the lips stay at rest."""
    later = times >= 0
    times, moves = times[later], moves[later]
    for place in range(len(moves) - STEADY_FRAMES + 1):
        if moves[place : place + STEADY_FRAMES].all():
            return float(times[place])
    return None


def time_to_rest(times: np.ndarray, moves: np.ndarray) -> float | None:
    """Return the time from which on no ``STEADY_FRAMES`` frames in a row move; None if they move until the end."""
    later = times >= 0
    times, moves = times[later], moves[later]
    last = -1
    for place in range(len(moves)):
        stretch = moves[max(0, place - STEADY_FRAMES + 1) : place + 1]
        if len(stretch) == STEADY_FRAMES and stretch.all():
            last = place
    return None if last + 1 >= len(times) else float(times[last + 1])


# --- Sound against picture --------------------------------------------------------------


def click_offsets(
    flashes: Sequence[float] | np.ndarray, clicks: Sequence[float] | np.ndarray, most: float = 480.0
) -> np.ndarray:
    """Return how many ms every click is after its flash; flashes without a click within ``most`` ms are left out."""
    if not len(flashes) or not len(clicks):
        return np.zeros(0)
    nearest = np.asarray(clicks)[np.abs(np.subtract.outer(np.asarray(flashes), np.asarray(clicks))).argmin(1)]
    offsets = nearest - np.asarray(flashes)
    return np.asarray(offsets[np.abs(offsets) <= most])


def read_clicks_and_flashes(path: Path) -> tuple[list[float], list[float]]:
    """Return the times in ms at which flashes and clicks begin in a recording."""
    import av

    flashes, clicks, bright, last = list[float](), list[float](), True, -1.0
    with av.open(str(path)) as container:
        for picture in container.decode(video=0):
            level = float(picture.to_ndarray(format="gray").mean())
            if level > 140 and not bright:
                flashes.append(1000 * float(picture.time or 0))
            bright = level > 100
    with av.open(str(path)) as container:
        for sound in container.decode(audio=0):
            samples = np.abs(sound.to_ndarray().astype(float))
            loud = np.flatnonzero((samples.max(0) if sound.format.is_planar else samples[0]) > 0.1)
            for time in float(sound.time or 0) + loud / sound.sample_rate:
                if time - last > 0.25:
                    clicks.append(1000 * time)
                last = time
    return flashes, clicks


def sync_distances(path: Path, sound_delay: float = 0.0, reach: int = 10) -> np.ndarray:
    """Return the distances ``[2 reach + 1]`` of the sync expert between the mouths of a recording and its sound.

    Args:
        path: the recording.
        sound_delay: milliseconds by which the recording has its sound late, as measured with a known source; taken off.
        reach: largest shift in frames; the best one is where the distance is smallest, positive for late sound.

    Raises:
        BadInput: the recording has no sound, or too few frames with a face.
    """
    import dataclasses

    from flowportrait.errors import BadInput
    from flowportrait.evaluation.lip_sync import measure_sync
    from flowportrait.evaluation.tracking import extract_tracks

    tracks = extract_tracks(path)
    early = round(sound_delay * SAMPLE_RATE / 1000)
    audio = np.zeros_like(tracks.audio)
    if early >= 0:
        audio[: len(audio) - early] = tracks.audio[early:]
    else:
        audio[-early:] = tracks.audio[:early]
    found = measure_sync(dataclasses.replace(tracks, audio=audio))
    if found is None or found.reach < reach:
        raise BadInput(f"{path} is too short for the sync expert: record 4 s or more.")
    return found.distance[found.reach - reach : found.reach + reach + 1]


# --- Speech, and memory -----------------------------------------------------------------


def cut_utterances(speech: np.ndarray, count: int, seconds: float, rate: int = SAMPLE_RATE) -> list[np.ndarray]:
    """Return pieces of a recording that begin with a voice after a pause, as int16; they repeat if there are too few.

    Args:
        speech: ``[n]`` float at ``rate``.
        count: how many.
        seconds: length of each.
        rate: sample rate in Hz.
    """
    step = rate // 100
    level = np.sqrt((speech[: len(speech) // step * step].reshape(-1, step) ** 2).mean(1))
    loud = level > 0.15 * np.quantile(level, 0.95)
    need = round(seconds * 100)
    onsets = [
        place
        for place in range(8, len(loud) - need)
        if loud[place : place + 6].all() and not loud[place - 8 : place].any()
    ]
    starts = [place * step for place in onsets] or [0]
    pieces = [speech[start : start + round(seconds * rate)] for start in starts]
    whole = [np.clip(32767 * pieces[number % len(pieces)], -32768, 32767).astype(np.int16) for number in range(count)]
    return whole


def slope_per_hour(seconds: Sequence[float], values: Sequence[float], skip: float = 0.25) -> float:
    """Return the slope of a line through values over time, per hour, without the first ``skip`` of the time."""
    times, amounts = np.asarray(seconds, float), np.asarray(values, float)
    rows = times >= times[0] + skip * (times[-1] - times[0])
    return float(np.polyfit(times[rows] / 3600, amounts[rows], 1)[0]) if rows.sum() > 1 else 0.0
