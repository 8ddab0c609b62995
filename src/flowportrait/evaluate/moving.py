"""Videos side by side as one picture that moves, for pages that show pictures and play no videos."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from flowportrait.media.video import FPS, iter_frames
from flowportrait.written import complete

_QUALITY = 60


def moving_picture(videos: Sequence[Path], target: Path, side: int = 256, seconds: float = 6.0, every: int = 2) -> None:
    """Write an endless WebP: the first ``seconds`` of square videos next to each other, ``side`` px each, every
    ``every``-th frame; as long as the shortest of them.

    Raises:
        BadInput: a file is missing or cannot be decoded.
    """
    shown = [islice(iter_frames(path), 0, round(seconds * FPS), every) for path in videos]
    frames = [
        Image.fromarray(np.hstack([cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in at_once]))
        for at_once in zip(*shown, strict=False)
    ]
    with complete(target) as unfinished:
        frames[0].save(
            unfinished, "WEBP", save_all=True, append_images=frames[1:], duration=1000 * every // FPS, loop=0,
            quality=_QUALITY, method=4,
        )  # fmt: skip
