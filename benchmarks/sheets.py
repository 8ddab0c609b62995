"""Contact sheets to be looked at: ``python benchmarks/sheets.py FOLDER --output sheets``.

Every portrait of a folder, and skimage's astronaut, in nine states made of ARKit shapes: the photo, silence, /a/, /m/,
/i/, a smile, a blink, and the head turned 20 degrees to either side. One PNG for every four portraits.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import tyro
from skimage import data

from flowportrait.codec.basis import HEAD, MotionBasis
from flowportrait.codec.blendshapes import SHAPES, to_motion
from flowportrait.codec.motion_codec import MotionCodec
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait

_PER_SHEET = 4

STATES: dict[str, dict[str, float]] = {
    "silence": {},
    "a": {"jawOpen": 0.45, "mouthLowerDownLeft": 0.2, "mouthLowerDownRight": 0.2},
    "m": {"mouthPressLeft": 0.3, "mouthPressRight": 0.3, "mouthClose": 0.1},
    "i": {"jawOpen": 0.1, "mouthSmileLeft": 0.3, "mouthSmileRight": 0.3, "mouthUpperUpLeft": 0.3,
          "mouthUpperUpRight": 0.3},
    "smile": {"mouthSmileLeft": 0.8, "mouthSmileRight": 0.8},
    "blink": {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0},
    "left": {"headYaw": -20.0, "jawOpen": 0.2},
    "right": {"headYaw": 20.0, "jawOpen": 0.2},
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What is drawn."""

    folder: tyro.conf.Positional[Path]
    output: Path = Path("sheets")
    size: int = 512
    tile: int = 320
    mouth: bool = False
    # only the lower face, larger


def motion(state: dict[str, float]) -> torch.Tensor:
    """Motion ``[1, 30]`` of one state."""
    weights = np.array([[state.get(name, 0.0) for name in SHAPES]])
    head = torch.zeros(1, 6)
    head[0, 1] = -np.radians(state.get("headYaw", 0.0)) / MotionBasis.load().head_std[1]
    assert HEAD.stop - HEAD.start == head.shape[1]
    return torch.cat([to_motion(weights), head], 1)


def row(image: np.ndarray, options: Options) -> np.ndarray:
    """One portrait in all states, ``[tile, 9 tile, 3]``."""
    codec = MotionCodec(Portrait.from_image(image, options.size))
    frames = [codec.portrait.crop, *codec.decode(torch.cat([motion(state) for state in STATES.values()]))]
    if options.mouth:
        points = codec.portrait.landmarks
        middle, reach = points[13, :2], 0.65 * np.linalg.norm(points[33] - points[263])
        low, high = (middle - reach).astype(int).clip(0), (middle + reach).astype(int)
        frames = [frame[low[1] : high[1], low[0] : high[0]] for frame in frames]
    size = (options.tile, options.tile)
    return np.hstack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def main(options: Options) -> None:
    """Draw and write."""
    options.output.mkdir(parents=True, exist_ok=True)
    paths = sorted(p for p in options.folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    rows = [row(read_image(path), options) for path in paths] + [row(data.astronaut(), options)]
    for start in range(0, len(rows), _PER_SHEET):
        sheet = np.vstack(rows[start : start + _PER_SHEET])
        target = options.output / f"sheet_{start // _PER_SHEET}.png"
        cv2.imwrite(str(target), sheet[..., ::-1])
        print(target, [path.stem for path in paths[start : start + _PER_SHEET]] or ["astronaut"])


if __name__ == "__main__":
    main(tyro.cli(Options))
