"""What the white of teeth goes by: ``python benchmarks/mouth_light.py --corpus CORPUS --data FOOTAGE``.

For every speaker of a corpus, in the most open frames of a few clips: luma of the teeth, of the white of the eyes and
of the brightest hundredth of the picture, all over the skin's; and the power of the skin's luma that the teeth's
follow over speakers. They are the numbers of ``flowportrait.rendering.mouth``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tyro

from flowportrait.data.corpus import FaceClip
from flowportrait.media.video import iter_frames
from flowportrait.rendering.mouth import LUMA, eye_white_colour, teeth_luma
from flowportrait.rendering.mouth_geometry import skin_colour

_FRAMES = 4
"""Of a clip, the most open ones of its first 60."""


@dataclass(frozen=True)
class Options:
    """What is measured."""

    corpus: Path
    data: Path
    clips: int = 3
    # per speaker


def measured(clip: FaceClip, video: Path) -> list[list[float]]:
    """Luma of skin, teeth, eye white and the brightest for each frame that shows all of them."""
    points = clip.landmarks[:60]
    chosen = set(np.argsort(-np.linalg.norm(points[:, 14] - points[:, 13], axis=1))[:_FRAMES].tolist())
    found = []
    for index, (frame, here) in enumerate(zip(iter_frames(video), points, strict=False)):
        if index in chosen:
            teeth, white = teeth_luma(frame, here), eye_white_colour(frame, here)
            if teeth is not None and white is not None:
                brightest = float(np.percentile(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), 99))
                found.append([float(skin_colour(frame, here) @ LUMA), teeth, float(white @ LUMA), brightest])
    return found


def main(options: Options) -> None:
    """Measure and print."""
    lines = (options.corpus / "clips.jsonl").read_text().splitlines()
    speakers: dict[str, list[str]] = {}
    for record in map(json.loads, lines):
        speakers.setdefault(record["speaker"], []).append(record["name"])
    rows = []
    for speaker, names in sorted(speakers.items()):
        found: list[list[float]] = []
        for name in names[: options.clips]:
            clip = FaceClip.load(options.corpus / "clips" / f"{name}.safetensors")
            found += measured(clip, options.data / f"{name}.mp4")
        if found:
            rows.append(np.median(found, axis=0))
            skin, *others = rows[-1]
            over = " ".join(f"{luma / skin:.2f}" for luma in others)
            print(f"{speaker:10s} skin {skin:4.0f}; teeth, eye white, brightest over it: {over}")
    table = np.log(rows)
    print(f"{len(rows)} speakers, medians", np.exp(np.median(table[:, 1:] - table[:, :1], axis=0)).round(2))
    print(f"teeth follow the skin's power {np.polyfit(table[:, 0], table[:, 1], 1)[0]:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
