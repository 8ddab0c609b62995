"""Measure how people move before they begin to speak: lips that part, a breath, over the last 600 ms of a pause.

    videos ─► sound: onsets after a pause ─► motion and lip opening around them ─► medians per speaker ─► their median

``live/preparation.py`` has the figures. Only speakers of the training splits are read:

    python -m tools.measure_speech_preparation ROOT --grid 90

ROOT has ``split.tsv`` (file, speaker, split) beside its videos. What is measured is the change since the pause, so that
neither the neutral face nor a mouth that rests open counts.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from itertools import islice
from pathlib import Path

import numpy as np

from flowportrait.evaluation.measure import lip_opening
from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.media.faces import FaceTracker
from flowportrait.media.video import FPS, iter_frames
from flowportrait.rendering.motion_basis import BROWS, HEAD, LOWER_FACE, MotionBasis

SPLITS = ("reward", "evaluation")
BEFORE, AFTER = 15, 5
"""Frames before and after an onset."""
REST = 3
"""Frames at the beginning of these that count as the pause."""
_STEP = SAMPLE_RATE // 100
_PAUSE, _SPEECH = 40, 20
"""Lengths, in steps of 10 ms, of the pause before an onset and of the speech after it."""


def onsets(samples: np.ndarray) -> list[float]:
    """Return the times in seconds at which speech begins after a pause.

    Args:
        samples: ``[n]`` at 16 kHz.
    """
    count = len(samples) // _STEP
    level = np.sqrt((samples[: count * _STEP].reshape(count, _STEP) ** 2).mean(1))
    floor, loud = np.quantile(level, 0.05), np.quantile(level, 0.95)
    threshold = max(2 * floor, floor + 0.1 * (loud - floor))
    speech = level > threshold
    return [
        place / 100
        for place in range(_PAUSE, count - _SPEECH)
        if speech[place : place + 4].all()
        and speech[place : place + _SPEECH].mean() > 0.7
        and speech[place - _PAUSE : place].mean() < 0.1
        and not speech[place - 3 : place].any()
    ]


def measure(video: Path, basis: MotionBasis) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return lip opening ``[20]`` and motion ``[20, 30]`` around every onset, as the change since the pause."""
    begins = [round(time * FPS) for time in onsets(read_audio(video))]
    begins = [begin for begin in begins if begin >= BEFORE]
    if not begins:
        return []
    with FaceTracker() as tracker:
        faces = tracker.track(islice(iter_frames(video), max(begins) + AFTER + 25))
    motion = basis.encode(faces.landmarks, faces.blendshapes)[0].numpy()
    opening = lip_opening(faces.landmarks[..., :2].astype(float))
    found = []
    for begin in begins:
        rows = slice(begin - BEFORE, begin + AFTER)
        if begin + AFTER > len(motion) or not np.isfinite(opening[rows]).all():
            continue
        found.append(
            (opening[rows] - np.median(opening[rows][:REST]), motion[rows] - np.median(motion[rows][:REST], 0))
        )
    return found


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--grid", type=int, default=90, help="videos of a speaker that are read at most")
    parser.add_argument("--save", type=Path, help="write all onsets as .npz")
    options = parser.parse_args()
    with (options.root / "split.tsv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] in SPLITS]
    by_speaker: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    read: dict[str, int] = defaultdict(int)
    basis = MotionBasis.load()
    for row in rows:
        path = options.root / row["file"]
        # Clips of 1.2 s have no pause, and those without sound no onset.
        if not row["file"].startswith(("grid/", "talkvid/", "hdtf/", "clips/")) or not path.is_file():
            continue
        if read[row["speaker"]] >= options.grid:
            continue
        read[row["speaker"]] += 1
        by_speaker[row["speaker"]] += measure(path, basis)
    known = {speaker: found for speaker, found in by_speaker.items() if found}
    print({speaker: len(found) for speaker, found in known.items()})
    times = 1000 * (np.arange(BEFORE + AFTER) - BEFORE) // FPS
    openings = {speaker: np.stack([one for one, _ in found]) for speaker, found in known.items()}
    motions = {speaker: np.stack([one for _, one in found]) for speaker, found in known.items()}
    print("ms before onset   opening: median over speakers, quartiles over onsets; lower face, brows, pitch, shift")
    pooled = np.concatenate(list(openings.values()))
    mean = np.median([np.median(one, 0) for one in openings.values()], 0)
    motion = np.median([np.median(one, 0) for one in motions.values()], 0)
    for place, time in enumerate(times):
        low, high = np.quantile(pooled[:, place], [0.25, 0.75])
        amount = np.linalg.norm(motion[place, LOWER_FACE])
        numbers = [amount, motion[place, BROWS].mean(), motion[place, HEAD.start], motion[place, HEAD.start + 4]]
        print(f"{time:6d}  {mean[place]:7.4f}  {low:7.4f} … {high:7.4f}  ", *(f"{number:6.2f}" for number in numbers))
    window = slice(BEFORE - 12, BEFORE - 3)
    moving = np.concatenate(list(motions.values()))
    peak = pooled[:, window].max(1)
    print("largest opening from -480 to -160 ms, quartiles:", np.round(np.quantile(peak, [0.25, 0.5, 0.75]), 4))
    step = np.diff(pooled[:, : BEFORE - 3], axis=1).max(1)
    print("its fastest step a frame, quartiles:", np.round(np.quantile(step, [0.25, 0.5, 0.75]), 4))
    half = [int(np.argmax(one > 0.5 * one[: BEFORE - 3].max())) for one in pooled]
    print("ms before the onset at which half of it is reached, quartiles:",
          np.quantile(1000 / FPS * (BEFORE - np.array(half)), [0.25, 0.5, 0.75]))  # fmt: skip
    for name, column in (("rise", HEAD.start + 4), ("pitch", HEAD.start)):
        values = -moving[:, :BEFORE, column].min(1)
        print(f"{name} of the head before the onset, quartiles:", np.round(np.quantile(values, [0.25, 0.5, 0.75]), 2))
    # Every speaker counts alike.
    weight = np.concatenate([np.full(len(one), 1 / len(one)) for one in openings.values()])[:, None]
    opened, lower = pooled[:, window], moving[:, window, LOWER_FACE]
    way = np.einsum("nt,ntd->d", weight * opened, lower) / (weight * opened**2).sum()
    print("lower face for an opening of 1:", np.round(way, 1).tolist())
    if options.save:
        speakers = np.repeat(list(known), [len(found) for found in known.values()])
        np.savez(options.save, opening=pooled, motion=moving, speaker=speakers)


if __name__ == "__main__":
    main()
