"""Face videos beside the numbers: for training what draws, not only what moves."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from flowportrait.corpus.clip import Clip
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video


def write_crop(video: Path, clip: Clip, start: int, size: int, target: Path) -> None:
    """The square ``clip.crop`` of ``video``, from frame ``start`` on, as an mp4 of ``size`` px with the clip's sound.

    A landmark at ``p`` in the video is at ``(p − corner + 0.5) · size / side − 0.5`` in the crop.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    frames = islice(iter_frames(video), start, start + len(clip))
    write_video(target, _cropped(frames, clip, size), clip.audio)


def _cropped(frames: Iterator[np.ndarray], clip: Clip, size: int) -> Iterator[np.ndarray]:
    assert clip.crop is not None
    left, top, side = (int(value) for value in clip.crop)
    for frame in frames:
        height, width = frame.shape[:2]
        # Beyond the frame its edge is repeated.
        rows = np.arange(top, top + side).clip(0, height - 1)
        columns = np.arange(left, left + side).clip(0, width - 1)
        square = frame[rows][:, columns]
        way = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
        yield cv2.resize(square, (size, size), interpolation=way)
