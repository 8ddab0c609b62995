"""The scales of the measured panel: known damage to real footage, graded by the rubric, measured by the experts.

    python -m flowportrait.judge.fit_measured FOOTAGE weights/judge/measured.json [--only EXPERT …]

    grade    5: best fifth of clean clips · 4.6: their median · 4, 3, 2: medians under growing damage · 1: broken

FOOTAGE is a folder with ``split.tsv`` (file, speaker, split); only speakers of the split ``reward`` are used, none of
which the panel is measured on. Medians that are out of order are pooled, so every scale is monotone.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import isotonic_regression

from flowportrait.errors import BadInput
from flowportrait.judge.exhibit import Exhibit
from flowportrait.judge.measured import Knots, joined
from flowportrait.judge.sanity import spoilt
from flowportrait.judge.steadiness import Steadiness
from flowportrait.reward.batch import RewardBatch
from flowportrait.reward.registry import build
from flowportrait.reward.scoring import score
from flowportrait.terminal import progress
from flowportrait.written import write_json

GRADED: dict[str, tuple[str, dict[int, float]]] = {
    "sync": ("offset", {4: 2.0, 3: 3.0, 2: 5.0}),
    "expressiveness": ("slowed", {4: 0.25, 3: 0.5, 2: 0.75, 1: 1.0}),
    "steadiness": ("jitter", {4: 0.5, 3: 1.5, 2: 4.0, 1: 8.0}),
    "temporal": ("flicker", {4: 2.0, 3: 5.0, 2: 12.0, 1: 25.0}),
}
"""Per expert a damage, and the strength that stands for each grade. What is broken about lip sync is another's
speech."""
CLEAN, BEST, BEST_SHARE = 4.6, 5.0, 0.8
PER_SPEAKER = 1


def fit(clips: Sequence[Exhibit], names: Sequence[str], steadiness: Steadiness) -> dict[str, Knots]:
    """Scales of the experts of these names from clips of one length."""
    clean = joined([clip.batch for clip in clips])
    found: dict[str, Knots] = {}
    for name in progress(names, len(names), "measuring"):
        damage, strengths = GRADED[name]
        expert = steadiness if name == steadiness.name else build(name)
        figures = score(expert, clean).value.numpy()
        points = [(BEST, float(np.nanquantile(figures, BEST_SHARE))), (CLEAN, float(np.nanmedian(figures)))]
        for grade, strength in strengths.items():
            batch = joined([spoilt(clip, damage, strength, place).batch for place, clip in enumerate(clips)])
            points.append((float(grade), float(np.nanmedian(score(expert, batch).value.numpy()))))
        if name == "sync":
            other = RewardBatch(clean.motion, clean.mel.roll(1, 0))
            points.append((1.0, float(torch.nanmedian(score(expert, other).value))))
        found[name] = monotone(points)
    return found


def monotone(points: Sequence[tuple[float, float]]) -> Knots:
    """(figure, grade) knots, both rising strictly, from (grade, figure) points; figures out of order are pooled under
    their mean grade, the lowest under its lowest."""
    ordered = sorted(points)
    pooled = isotonic_regression([figure for _, figure in ordered]).x
    knots: dict[float, list[float]] = {}
    for (grade, _), figure in zip(ordered, pooled, strict=True):
        knots.setdefault(round(float(figure), 6), []).append(grade)
    lowest = min(knots)
    return [
        (figure, min(grades) if figure == lowest else float(np.mean(grades)))
        for figure, grades in sorted(knots.items())
    ]


def speakers_clips(
    footage: Path, folder: str = "anchors", split: str = "reward", per_speaker: int = PER_SPEAKER
) -> list[Exhibit]:
    """``per_speaker`` clips of every speaker of a split, cut to one length.

    Raises:
        BadInput: no ``split.tsv``, or nothing of that split.
    """
    table = footage / "split.tsv"
    if not table.is_file():
        raise BadInput(f"{table} is missing: it says which speaker may be used for what.")
    files: dict[str, list[str]] = {}
    for row in csv.DictReader(table.open(encoding="utf-8"), delimiter="\t"):
        if row["split"] == split and row["file"].startswith(f"{folder}/"):
            files.setdefault(row["speaker"], []).append(row["file"])
    chosen = [name for names in files.values() for name in random.Random(0).sample(names, min(per_speaker, len(names)))]
    clips = [Exhibit.from_video(footage / name) for name in chosen]
    usable = [clip for clip in clips if clip.shortness() is None and not clip.silent()]
    if not usable:
        raise BadInput(f"{table} lists no usable clip of {folder} in the split {split}.")
    least = min(len(clip) for clip in usable)
    return [Exhibit(clip.frames[:least], clip.audio, clip.name) for clip in usable]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("footage", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(GRADED), metavar="EXPERT", help="keep the others' scales")
    options = parser.parse_args()
    clips = speakers_clips(options.footage)
    before = json.loads(options.output.read_text(encoding="utf-8"))["scales"] if options.only else {}
    every = tuple(range(len(clips[0])))
    steadiness = Steadiness.of_real(torch.cat([clip.batch.places(every) for clip in clips]))
    scales = before | fit(clips, options.only or list(GRADED), steadiness)
    real = {"floor": steadiness.floor, "unmoved": steadiness.unmoved}
    found = {"clips": len(clips), "graded_by": GRADED, "real": real, "scales": {name: scales[name] for name in GRADED}}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, found)


if __name__ == "__main__":
    main()
