"""What the options of ``flowportrait animate`` mean, whichever way the video is made; and what is told at its end."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowportrait.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

    from flowportrait.codec.controls import Controls

LARGEST_SIDE = 1920


def photo(path: Path) -> np.ndarray:
    """The photo, scaled down if a side exceeds what ordinary video players take (1920 px)."""
    from flowportrait.media.image import read_image

    image = read_image(path)
    side = max(image.shape[:2])
    if side <= LARGEST_SIDE:
        return image
    import cv2

    scale = LARGEST_SIDE / side
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def controls_of(options: argparse.Namespace) -> Controls:
    """What is turned up or down.

    Raises:
        BadInput: ``--gaze`` is not two angles, or a factor is out of range.
    """
    from flowportrait.codec.controls import Controls

    return Controls(options.blink, options.head_motion, options.expression_scale, _gaze(options.gaze))


def told(options: argparse.Namespace, count: int, started: float) -> dict[str, Any]:
    """What the command prints of a video of ``count`` frames, begun at ``time.monotonic() == started``."""
    from flowportrait.media.video import FPS

    seconds = time.monotonic() - started
    return {
        "output": str(options.output), "frames": count, "fps": FPS, "seconds": round(count / FPS, 3),
        "checkpoint": str(options.checkpoint), "seed": options.seed,
        "real_time_factor": round(seconds / (count / FPS), 3),
    }  # fmt: skip


def _gaze(text: str) -> tuple[float, float]:
    try:
        right, up = (float(part) for part in text.split(","))
    except ValueError as error:
        raise BadInput(f"--gaze {text!r} is not possible: give two angles in degrees, such as 10,0.") from error
    return right, up
