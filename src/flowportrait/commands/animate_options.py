"""What the options of ``flowportrait animate`` mean, whichever way the video is made, and what it prints at its end."""

from __future__ import annotations

import argparse
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowportrait.errors import BadInput

if TYPE_CHECKING:
    from flowportrait.codec.controls import Controls
    from flowportrait.media.portrait import Photo


def photo(path: Path, background: str | None = None) -> Photo:
    """The photo with its own pixels, shown as large as ordinary video players take it.

    Raises:
        BadInput: it cannot be read, or ``background`` is no colour.
    """
    from flowportrait.media.image import WHITE, read_image
    from flowportrait.media.portrait import Photo

    return Photo.for_video(read_image(path, colour(background) if background else WHITE))


def colour(text: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a colour's name in CSS or of ``#rrggbb``.

    Raises:
        BadInput: it is neither.
    """
    from PIL import ImageColor

    try:
        red, green, blue, *_ = ImageColor.getrgb(text)
    except ValueError as error:
        raise BadInput(f"--background {text!r} is no colour: give a name such as green, or #00ff00.") from error
    return red, green, blue


def controls_of(options: argparse.Namespace) -> Controls:
    """What is turned up or down.

    Raises:
        BadInput: ``--gaze`` is not two angles, or a factor is out of range.
    """
    from flowportrait.codec.controls import Controls

    return Controls(options.blink, options.head_motion, options.expression_scale, _gaze(options.gaze))


def result_summary(
    options: argparse.Namespace, count: int, started: float, fps: Fraction | None = None
) -> dict[str, Any]:
    """What the command prints of a video of ``count`` frames, begun at ``time.monotonic() == started``; ``fps`` a
    second, 25 by default."""
    from flowportrait.media.video import FPS

    rate = FPS if fps is None or fps == FPS else round(float(fps), 3)
    seconds = time.monotonic() - started
    return {
        "output": str(options.output), "frames": count, "fps": rate, "seconds": round(count / rate, 3),
        "checkpoint": str(options.checkpoint), "seed": options.seed,
        "real_time_factor": round(seconds / (count / rate), 3),
    }  # fmt: skip


def _gaze(text: str) -> tuple[float, float]:
    try:
        right, up = (float(part) for part in text.split(","))
    except ValueError as error:
        raise BadInput(f"--gaze {text!r} is not possible: give two angles in degrees, such as 10,0.") from error
    return right, up
