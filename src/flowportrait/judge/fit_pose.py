"""The pose check's constants and scale: real footage, and a head that is stretched by known shares.

    python -m flowportrait.judge.fit_pose FOOTAGE weights/judge/pose.json

Grades and clips as in ``fit_measured``: one clip of every speaker of the split ``reward``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flowportrait.corruption.footage import Footage
from flowportrait.corruption.head import stretched
from flowportrait.judge.exhibit import Exhibit
from flowportrait.judge.fit_measured import BEST, BEST_SHARE, CLEAN, monotone, speakers_clips
from flowportrait.judge.pose import HeadPose
from flowportrait.written import write_json

STRENGTHS = {4: 0.02, 3: 0.05, 2: 0.1, 1: 0.2}
"""Grade → share by which a head grows wider."""


def bent(clip: Exhibit, damage: Callable[[Footage, float, int], Footage], strength: float) -> Exhibit:
    """A clip with a damaged head; where its landmarks went is known and not tracked again."""
    track = np.concatenate([clip.landmarks, np.zeros_like(clip.landmarks[..., :1])], -1)
    hurt = damage(Footage(clip.frames, clip.audio, track), strength, 0)
    assert hurt.frames is not None
    assert hurt.landmarks is not None
    return Exhibit(hurt.frames, clip.audio, f"{clip.name} bent", places=hurt.landmarks[..., :2])


def places_of(clips: Sequence[Exhibit]) -> torch.Tensor:
    """Landmarks ``[B, T, 478, 2]`` of clips of one length."""
    return torch.from_numpy(np.stack([clip.landmarks for clip in clips]).astype(np.float32))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("footage", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    clips = [replace(clip, places=clip.landmarks) for clip in speakers_clips(options.footage)]
    pose = HeadPose.of_real(places_of(clips))
    clean = pose.figures(places_of(clips)).numpy()
    points = [(BEST, float(np.quantile(clean, BEST_SHARE))), (CLEAN, float(np.median(clean)))]
    for grade, share in STRENGTHS.items():
        hurt = pose.figures(places_of([bent(clip, stretched, share) for clip in clips]))
        points.append((float(grade), float(hurt.median())))
    found = {"clips": len(clips), "real": {"bend": pose.bend, "turn": pose.turn}, "scale": monotone(points)}
    write_json(options.output, found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
