"""Videos at a glance: contact sheets of frames and mouths, and animated pictures of videos side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from flowportrait.media.align import to_canonical
from flowportrait.media.face import FaceTracker
from flowportrait.media.video import FPS, iter_frames
from flowportrait.written import complete

CELL = 192
MOUTH_WIDTH = 0.9
"""Of the mouth zoom, in outer-eye-corner distances."""
GAP = 4
_STRIP = 20


def contact_sheet(path: Path, columns: int = 10) -> np.ndarray:
    """``[H, W, 3]`` RGB: ``columns`` frames evenly spaced over the video, each over a zoom on its mouth, with
    the time in seconds. Frames without a face leave the zoom empty.

    Raises:
        BadInput: the file is missing or cannot be decoded.
    """
    total = sum(1 for _ in iter_frames(path))
    wanted = np.unique(np.linspace(0, total - 1, min(columns, total)).round().astype(int))
    cells = []
    with FaceTracker(still=True) as tracker:
        for index, frame in enumerate(iter_frames(path)):
            if index in wanted:
                faces = tracker.detect(frame)
                cells.append(_cell(frame, faces[0][0] if faces else None, index / FPS))
    gap = np.full((cells[0].shape[0], GAP, 3), 255, np.uint8)
    return np.hstack([piece for cell in cells for piece in (cell, gap)][:-1])


def _cell(frame: np.ndarray, landmarks: np.ndarray | None, seconds: float) -> np.ndarray:
    picture = _face_view(frame, landmarks) if landmarks is not None else cv2.resize(_square(frame), (CELL, CELL))
    zoom = np.full((round(CELL * 0.62), CELL, 3), 255, np.uint8)
    if landmarks is not None:
        matrix = to_canonical(landmarks) * (CELL / MOUTH_WIDTH)
        matrix[:, 2] += np.array([CELL / 2, zoom.shape[0] / 2]) - np.array([0.0, 0.84]) * CELL / MOUTH_WIDTH
        zoom = cv2.warpAffine(frame, matrix, zoom.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    label = np.full((_STRIP, CELL, 3), 255, np.uint8)
    cv2.putText(label, f"{seconds:.2f} s", (2, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (90, 90, 90), 1, cv2.LINE_AA)
    return np.vstack([label, picture, np.full((GAP, CELL, 3), 255, np.uint8), zoom])


def _square(frame: np.ndarray) -> np.ndarray:
    side = min(frame.shape[:2])
    top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
    return frame[top : top + side, left : left + side]


def _face_view(frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """A square around the head (1.9 face heights), inside the frame where it fits."""
    low, high = landmarks[:, :2].min(0), landmarks[:, :2].max(0)
    side = min(1.9 * float((high - low).max()), *frame.shape[:2])
    centre = np.clip((low + high) / 2, side / 2, np.array(frame.shape[1::-1]) - side / 2)
    matrix = np.array([[1.0, 0, side / 2 - centre[0]], [0, 1.0, side / 2 - centre[1]]]) * (CELL / side)
    flags = cv2.INTER_AREA if side > CELL else cv2.INTER_CUBIC
    if side > 1.5 * CELL:
        frame = cv2.GaussianBlur(frame, (0, 0), 0.4 * side / CELL)
    return cv2.warpAffine(frame, matrix, (CELL, CELL), flags=flags, borderMode=cv2.BORDER_REPLICATE)


_QUALITY = 60


def write_animated_webp(
    videos: Sequence[Path], target: Path, side: int = 256, seconds: float = 6.0, every: int = 2
) -> None:
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
