"""Fit the scales from measurements to grades of the measured panel.

    python -m tools.fit_judge_scales FOOTAGE weights/judge/measured.json [--only EXPERT …]
    python -m tools.fit_judge_scales FOOTAGE weights/judge/pose.json --pose

    grade    5: best fifth of clean clips · 4.6: their median · 4, 3, 2: medians under growing damage · 1: broken

FOOTAGE is a folder with ``split.tsv`` (file, speaker, split). Only speakers of the split ``reward`` are used; the panel
is evaluated on other speakers. Medians that are out of order are pooled, so every scale is monotone. The pose check is
fitted on heads that are stretched by known shares.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import isotonic_regression

from flowportrait.corruption.clips import Footage, stretch_head
from flowportrait.errors import BadInput
from flowportrait.files import write_json
from flowportrait.judges.clips import JudgedClip
from flowportrait.judges.measured_panel import HeadPose, Knots, Steadiness, concatenate_batches
from flowportrait.judges.sanity import corrupt_clip
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import score_batch
from flowportrait.rewards.registry import build_reward
from flowportrait.terminal import progress

GRADED: dict[str, tuple[str, dict[int, float]]] = {
    "sync": ("offset", {4: 2.0, 3: 3.0, 2: 5.0}),
    "expressiveness": ("slowed", {4: 0.25, 3: 0.5, 2: 0.75, 1: 1.0}),
    "steadiness": ("jitter", {4: 0.5, 3: 1.5, 2: 4.0, 1: 8.0}),
    "temporal": ("flicker", {4: 2.0, 3: 5.0, 2: 12.0, 1: 25.0}),
}
"""Corruption of each expert, and its strength for each grade. Grade 1 of lip sync is the speech of another clip."""
CLEAN, BEST, BEST_SHARE = 4.6, 5.0, 0.8
"""Grade of the median of clean clips, grade of the best ones, and the quantile that counts as best."""
PER_SPEAKER = 1
STRETCHED = {4: 0.02, 3: 0.05, 2: 0.1, 1: 0.2}
"""Share by which a head is stretched, by grade."""


def fit(clips: Sequence[JudgedClip], names: Sequence[str], steadiness: Steadiness) -> dict[str, Knots]:
    """Return the scales of these experts, fitted on clips of one length."""
    clean = concatenate_batches([clip.batch for clip in clips])
    scales: dict[str, Knots] = {}
    for name in progress(names, len(names), "measuring"):
        damage, strengths = GRADED[name]
        expert = steadiness if name == steadiness.name else build_reward(name)
        values = score_batch(expert, clean).value.numpy()
        points = [(BEST, float(np.nanquantile(values, BEST_SHARE))), (CLEAN, float(np.nanmedian(values)))]
        for grade, strength in strengths.items():
            batch = concatenate_batches(
                [corrupt_clip(clip, damage, strength, place).batch for place, clip in enumerate(clips)]
            )
            points.append((float(grade), float(np.nanmedian(score_batch(expert, batch).value.numpy()))))
        if name == "sync":
            other = RewardBatch(clean.motion, clean.mel.roll(1, 0))
            points.append((1.0, float(torch.nanmedian(score_batch(expert, other).value))))
        scales[name] = monotone(points)
    return scales


def monotone(points: Sequence[tuple[float, float]]) -> Knots:
    """Return (value, grade) knots, both rising strictly, from (grade, value) points.

    Values out of order are pooled under their mean grade, the lowest under its lowest.
    """
    ordered = sorted(points)
    pooled = isotonic_regression([value for _, value in ordered]).x
    knots: dict[float, list[float]] = {}
    for (grade, _), value in zip(ordered, pooled, strict=True):
        knots.setdefault(round(float(value), 6), []).append(grade)
    lowest = min(knots)
    return [
        (value, min(grades) if value == lowest else float(np.mean(grades))) for value, grades in sorted(knots.items())
    ]


def speakers_clips(
    footage: Path, folder: str = "anchors", split: str = "reward", per_speaker: int = PER_SPEAKER
) -> list[JudgedClip]:
    """Return ``per_speaker`` clips of every speaker of a split, cut to one length.

    Raises:
        BadInput: if there is no ``split.tsv``, or no usable clip of that split.
    """
    table = footage / "split.tsv"
    if not table.is_file():
        raise BadInput(f"{table} is missing: it says which speaker may be used for what.")
    files: dict[str, list[str]] = {}
    for row in csv.DictReader(table.open(encoding="utf-8"), delimiter="\t"):
        if row["split"] == split and row["file"].startswith(f"{folder}/"):
            files.setdefault(row["speaker"], []).append(row["file"])
    chosen = [name for names in files.values() for name in random.Random(0).sample(names, min(per_speaker, len(names)))]
    clips = [JudgedClip.from_video(footage / name) for name in chosen]
    usable = [clip for clip in clips if clip.too_short() is None and not clip.is_silent()]
    if not usable:
        raise BadInput(f"{table} lists no usable clip of {folder} in the split {split}.")
    least = min(len(clip) for clip in usable)
    return [JudgedClip(clip.frames[:least], clip.audio, clip.name) for clip in usable]


def damage_head(clip: JudgedClip, damage: Callable[[Footage, float, int], Footage], strength: float) -> JudgedClip:
    """Return a clip with a damaged head; its landmarks are known and not tracked again."""
    track = np.concatenate([clip.landmarks, np.zeros_like(clip.landmarks[..., :1])], -1)
    damaged = damage(Footage(clip.frames, clip.audio, track), strength, 0)
    assert damaged.frames is not None
    assert damaged.landmarks is not None
    return JudgedClip(damaged.frames, clip.audio, f"{clip.name} bent", known_landmarks=damaged.landmarks[..., :2])


def stack_landmarks(clips: Sequence[JudgedClip]) -> torch.Tensor:
    """Return the landmarks ``[B, T, 478, 2]`` of clips of one length."""
    return torch.from_numpy(np.stack([clip.landmarks for clip in clips]).astype(np.float32))


def fit_experts(footage: Path, before: dict[str, Knots], only: Sequence[str]) -> dict[str, object]:
    """Return the stored form of the experts' scales; those not in ``only`` are taken from ``before``."""
    clips = speakers_clips(footage)
    every = tuple(range(len(clips[0])))
    steadiness = Steadiness.fit_to_real_clips(torch.cat([clip.batch.places(every) for clip in clips]))
    scales = before | fit(clips, only or list(GRADED), steadiness)
    real = {"floor": steadiness.floor, "unmoved": steadiness.unmoved}
    return {"clips": len(clips), "graded_by": GRADED, "real": real, "scales": {name: scales[name] for name in GRADED}}


def fit_pose(footage: Path) -> dict[str, object]:
    """Return the stored form of the pose check's constants and scale."""
    clips = [replace(clip, known_landmarks=clip.landmarks) for clip in speakers_clips(footage)]
    pose = HeadPose.fit_to_real_clips(stack_landmarks(clips))
    clean = pose.measure(stack_landmarks(clips)).numpy()
    points = [(BEST, float(np.quantile(clean, BEST_SHARE))), (CLEAN, float(np.median(clean)))]
    for grade, share in STRETCHED.items():
        damaged = pose.measure(stack_landmarks([damage_head(clip, stretch_head, share) for clip in clips]))
        points.append((float(grade), float(damaged.median())))
    return {"clips": len(clips), "real": {"bend": pose.bend, "turn": pose.turn}, "scale": monotone(points)}


def main() -> None:
    """Fit the scales and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("footage", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--only", nargs="+", choices=list(GRADED), metavar="EXPERT", help="experts to fit; the others keep their scales"
    )
    parser.add_argument("--pose", action="store_true", help="fit the pose check instead of the experts")
    options = parser.parse_args()
    if options.pose:
        result = fit_pose(options.footage)
    else:
        before = json.loads(options.output.read_text(encoding="utf-8"))["scales"] if options.only else {}
        result = fit_experts(options.footage, before, options.only or ())
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, result)


if __name__ == "__main__":
    main()
