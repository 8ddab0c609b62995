"""Contact sheets to be looked at: ``python benchmarks/sheets.py FOLDER --output sheets``.

Every portrait of a folder, and skimage's astronaut, in nine states made of ARKit shapes: the photo, silence, /a/, /m/,
/i/, a smile, a blink, and the head turned 20 degrees to either side. One PNG for every four portraits. With ``--loops``
also one video of each portrait, NAME.mp4: the states come and go beside each other without end, the head turns from
side to side and nods. ``--part`` shows a part of the picture, larger.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
import tyro
from skimage import data

from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.write_video import write_video
from flowportrait.rendering.motion_basis import HEAD, MotionBasis
from flowportrait.rendering.motion_files import ARKIT_SHAPES, blendshapes_to_motion
from flowportrait.rendering.renderer import MotionCodec

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
    "up": {"headPitch": 15.0},
    "down": {"headPitch": -15.0},
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What is drawn."""

    folder: tyro.conf.Positional[Path]
    output: Path = Path("sheets")
    size: int = 512
    tile: int = 320
    part: Literal["all", "mouth", "eyes", "hair", "top", "left", "right"] = "all"
    # only that part, larger
    loops: bool = False
    # looping clips, and sheets of their frames
    only: tuple[str, ...] = ()
    # names of the portraits to draw; all by default


LOOPS = {name: [name] for name in ("silence", "a", "m", "smile", "blink")} | {
    "turn": ["right", "silence", "left", "silence"], "nod": ["up", "silence", "down", "silence"]
}  # fmt: skip
LOOP_FRAMES = 24
_FROM_LOOP = 8
"""Frames of a loop that its sheet shows."""


def motion(state: dict[str, float]) -> torch.Tensor:
    """Motion ``[1, 30]`` of one state."""
    weights = np.array([[state.get(name, 0.0) for name in ARKIT_SHAPES]])
    head = torch.zeros(1, 6)
    head[0, 1] = -np.radians(state.get("headYaw", 0.0)) / MotionBasis.load().head_std[1]
    head[0, 0] = -np.radians(state.get("headPitch", 0.0)) / MotionBasis.load().head_std[0]
    assert HEAD.stop - HEAD.start == head.shape[1]
    return torch.cat([blendshapes_to_motion(weights), head], 1)


def loop(names: list[str]) -> torch.Tensor:
    """Motion ``[24, 30]`` from rest to each state and back, without a jump where it begins anew."""
    rest, span = motion({}), LOOP_FRAMES // len(names)
    swell = (0.5 - 0.5 * torch.cos(torch.arange(span) / span * 2 * np.pi))[:, None]
    return torch.cat([rest + swell * (motion(STATES[name]) - rest) for name in names])


def part(frame: np.ndarray, points: np.ndarray, options: Options) -> np.ndarray:
    """The wanted part of a frame of a portrait with landmarks ``[478, 3]`` px, at the tile's size."""
    last, eyes = frame.shape[0], float(np.linalg.norm(points[33] - points[263]))
    middle = {
        "mouth": points[13, :2], "eyes": points[168, :2], "hair": points[10, :2], "top": (points[10, 0], 0.65 * eyes),
        "left": (0.65 * eyes, points[4, 1]), "right": (last - 0.65 * eyes, points[4, 1]),
    }.get(options.part)  # fmt: skip
    if middle is not None:
        low, high = (np.array(middle) - 0.65 * eyes).astype(int).clip(0), (np.array(middle) + 0.65 * eyes).astype(int)
        frame = frame[low[1] : high[1], low[0] : high[0]]
    return cv2.resize(frame, (options.tile, options.tile), interpolation=cv2.INTER_AREA)


def row(codec: MotionCodec, options: Options) -> np.ndarray:
    """One portrait in all states, ``[tile, 9 tile, 3]``."""
    states = (state for name, state in STATES.items() if name not in ("up", "down"))
    frames = [codec.portrait.crop, *codec.decode(torch.cat([motion(state) for state in states]))]
    return np.hstack([part(frame, codec.portrait.landmarks, options) for frame in frames])


def looped(codec: MotionCodec, target: Path, options: Options) -> np.ndarray:
    """Write all loops of a portrait side by side as ``target``; returns frames of each, a row a loop."""
    tiles = [
        [part(frame, codec.portrait.landmarks, options) for frame in codec.decode(loop(names))]
        for names in LOOPS.values()
    ]
    frames = [np.hstack(list(at_once)) for at_once in zip(*tiles, strict=True)]
    write_video(target, frames, None)
    return np.vstack([np.hstack(each[:: LOOP_FRAMES // _FROM_LOOP]) for each in tiles])


def main(options: Options) -> None:
    """Draw and write."""
    options.output.mkdir(parents=True, exist_ok=True)
    paths = sorted(p for p in options.folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    images = {path.stem: lambda path=path: read_image(path) for path in paths} | {"astronaut": data.astronaut}
    names = [name for name in images if name in options.only or not options.only]
    codecs = {name: MotionCodec(Portrait.from_image(images[name](), options.size)) for name in names}
    for start in range(0, len(names), _PER_SHEET):
        shown = names[start : start + _PER_SHEET]
        target = options.output / f"sheet_{start // _PER_SHEET}.png"
        cv2.imwrite(str(target), np.vstack([row(codecs[name], options) for name in shown])[..., ::-1])
        print(target, shown)
    for name in names if options.loops else ():
        sheet = looped(codecs[name], options.output / f"{name}.mp4", options)
        cv2.imwrite(str(options.output / f"{name}.png"), sheet[..., ::-1])
        print(options.output / f"{name}.mp4")


if __name__ == "__main__":
    main(tyro.cli(Options))
