"""What each specialist is shown, made from one clip.

lip_sync         mouth close-ups, 25 fps, five to a row, the waveform of the same 0.2 s under the row; the sound
expressiveness   the whole face about six times a second; the sound
motion           neighbouring frames and 4 × |difference|, where most changes
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from flowportrait.judge.exhibit import Exhibit
from flowportrait.judge.rubric import Aspect
from flowportrait.media.video import FPS, SAMPLES_PER_FRAME

LIPS = (61, 291, 0, 17)
"""Corners, top and bottom of the mouth."""
COLUMNS = 5
CELL = 144
_LABEL = 16
_WAVE = 44
_AMPLIFIED = 4
_FACE_SIDE = 256
_FACE_EVERY = 4
_CHANGES = 9


@dataclass(frozen=True)
class Evidence:
    """pictures: sheets ``[H, W, 3]`` uint8 with a caption each; video ``[K, S, S, 3]`` uint8 at ``fps``, seen from
    the beginning of the clip; audio ``[N]`` 16 kHz (empty where the aspect does without); clip: the whole exhibit."""

    aspect: str
    pictures: tuple[tuple[str, np.ndarray], ...]
    video: np.ndarray
    fps: float
    audio: np.ndarray
    clip: Exhibit


def gather(exhibit: Exhibit, aspect: Aspect, sheets: int = 4) -> Evidence:
    """Evidence for one aspect; long clips are shown on ``sheets`` sheets spread over them, the video in full."""
    if aspect == "lip_sync":
        mouth = mouth_video(exhibit)
        starts = _spread(len(exhibit), FPS, sheets)
        pictures = tuple(
            (f"Mouth from {start / FPS:.2f} s, 0.04 s apart", mouth_sheet(mouth, exhibit.audio, start))
            for start in starts
        )
        return Evidence(aspect, pictures, mouth, FPS, exhibit.audio, exhibit)
    face = face_video(exhibit)
    if aspect == "expressiveness":
        seen = face[::_FACE_EVERY]
        per_sheet = 12
        pictures = tuple(
            (
                f"Face from {start * _FACE_EVERY / FPS:.2f} s, {_FACE_EVERY / FPS:.2f} s apart",
                _sheet(seen[start : start + per_sheet], (np.arange(start, len(seen)) * _FACE_EVERY)[:per_sheet], 4),
            )
            for start in _spread(len(seen), per_sheet, sheets)
        )
        return Evidence(aspect, pictures, seen, FPS / _FACE_EVERY, exhibit.audio, exhibit)
    caption = f"Where most changes: a frame, the next one, and {_AMPLIFIED} times their difference"
    return Evidence(aspect, ((caption, change_sheet(face)),), face, FPS, np.zeros(0, np.float32), exhibit)


def mouth_video(exhibit: Exhibit) -> np.ndarray:
    """Mouth close-ups ``[T, CELL, CELL, 3]`` uint8: the place follows the mouth's corners, the scale stands still."""
    points = exhibit.landmarks
    corners = points[:, LIPS[:2]]
    side = 2.2 * float(np.median(np.linalg.norm(corners[:, 1] - corners[:, 0], axis=-1)))
    # Placed by the corners alone and a little low: the jaw opens without the window following it.
    middle = _calm(corners.mean(1)) + np.array([0, 0.08 * side])
    return _windows(exhibit.frames, middle, side, CELL)


def face_video(exhibit: Exhibit) -> np.ndarray:
    """The whole face in a square that stands still ``[T, 256, 256, 3]`` uint8, so that head motion is seen."""
    points = np.nanmedian(exhibit.landmarks, 0)
    low, high = points.min(0), points.max(0)
    middle = np.repeat(((low + high) / 2)[None], len(exhibit), 0)
    return _windows(exhibit.frames, middle, 1.7 * float((high - low).max()), _FACE_SIDE)


def mouth_sheet(mouth: np.ndarray, audio: np.ndarray, start: int) -> np.ndarray:
    """One second of close-ups, five to a row with times, and under each row the waveform of those 0.2 s."""
    level = max(float(np.abs(audio).max(initial=0.0)), 1e-3)
    rows = []
    for first in range(start, min(start + FPS, len(mouth)), COLUMNS):
        cells = mouth[first : first + COLUMNS]
        heard = audio[first * SAMPLES_PER_FRAME : (first + len(cells)) * SAMPLES_PER_FRAME]
        pictures = _sheet(cells, np.arange(first, first + len(cells)), COLUMNS)
        wave = waveform(heard / level, len(cells) * CELL)
        rows += [pictures, np.pad(wave, ((0, 0), (0, pictures.shape[1] - wave.shape[1]), (0, 0)))]
    return np.concatenate(rows)


def waveform(samples: np.ndarray, width: int) -> np.ndarray:
    """Samples in [-1, 1] as a picture ``[44, width, 3]`` uint8: each column spans their range at that moment."""
    canvas = np.full((_WAVE, width, 3), 24, np.uint8)
    edges = np.linspace(0, len(samples), width + 1).astype(int)
    for x, (low, high) in enumerate(pairwise(edges)):
        piece = samples[low : max(high, low + 1)]
        if len(piece):
            top, bottom = ((1 - np.array([piece.max(), piece.min()]).clip(-1, 1)) / 2 * (_WAVE - 1)).astype(int)
            canvas[top : bottom + 1, x] = (90, 220, 140)
    return canvas


def change_sheet(face: np.ndarray) -> np.ndarray:
    """Rows of (frame, next frame, amplified difference) at the ``_CHANGES`` largest changes, in order of time."""
    change = np.array([np.abs(b.astype(np.int16) - a).mean() for a, b in pairwise(face)])
    places = np.sort(np.argsort(-change)[:_CHANGES])
    cells, times = [], []
    for place in places:
        now, later = face[place], face[place + 1]
        difference = np.abs(later.astype(np.int16) - now) * _AMPLIFIED
        cells += [now, later, difference.clip(0, 255).astype(np.uint8)]
        times += [place, place + 1, place + 1]
    return _sheet(np.stack(cells), np.array(times), 3)


def _sheet(cells: np.ndarray, times: np.ndarray, columns: int) -> np.ndarray:
    """Pictures with their times in a grid, row by row."""
    side = CELL
    rows = -(-len(cells) // columns)
    sheet = np.zeros((rows * (side + _LABEL), columns * side, 3), np.uint8)
    for index, (cell, time) in enumerate(zip(cells, times, strict=True)):
        top, left = index // columns * (side + _LABEL), index % columns * side
        sheet[top : top + side, left : left + side] = cv2.resize(cell, (side, side), interpolation=cv2.INTER_AREA)
        place = (left + 4, top + side + _LABEL - 4)
        cv2.putText(sheet, f"{time / FPS:.2f} s", place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return sheet


def _windows(frames: np.ndarray, middle: np.ndarray, side: float, pixels: int) -> np.ndarray:
    scale = pixels / max(side, 1.0)
    flags = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    result = []
    for frame, centre in zip(frames, middle, strict=True):
        matrix = np.array([[scale, 0, pixels / 2 - scale * centre[0]], [0, scale, pixels / 2 - scale * centre[1]]])
        result.append(cv2.warpAffine(frame, matrix, (pixels, pixels), flags=flags, borderMode=cv2.BORDER_REPLICATE))
    return np.stack(result)


def _calm(track: np.ndarray) -> np.ndarray:
    """Mean over five frames, so that the window does not tremble with the landmarks."""
    padded = np.pad(track, ((2, 2), (0, 0)), mode="edge")
    return np.stack([padded[i : i + len(track)] for i in range(5)]).mean(0)


def _spread(length: int, span: int, most: int) -> list[int]:
    """Beginnings of at most ``most`` stretches of ``span`` that cover ``length``, or are spread over it."""
    wanted = -(-length // span)
    if wanted <= most:
        return [index * span for index in range(wanted)]
    return [round(index * (length - span) / (most - 1)) for index in range(most)] if most > 1 else [0]
