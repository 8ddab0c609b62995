"""A finished video, looked at once: landmarks, mouth patches, sound and head-stabilised optical flow.

Every metric reads a ``Tracked`` and never the file. It is cached under the file's content hash.

The flow is signed and lives in a frame that follows the head below about 3 Hz, in per cent of the distance
between the outer eye corners per frame, averaged over an 8 × 8 grid of face cells.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
from scipy.signal import savgol_filter

from flowportrait.errors import BadInput
from flowportrait.media.align import mouth_patch, to_canonical
from flowportrait.media.audio import has_audio, read_audio
from flowportrait.media.face import FaceTracker
from flowportrait.media.video import SAMPLES_PER_FRAME, iter_frames

FLOW_SIDE = 96
"""Pixels of the stabilised face square."""
CELLS = 8
FACE_SQUARE = (0.0, 0.45, 2.0)
"""Centre and width of that square in outer-eye-corner distances."""
STABILISER_FRAMES = 9
FORMAT = 1
"""Part of the cache name: raised when what is stored changes."""


@dataclass(frozen=True)
class Tracked:
    """landmarks ``[T, 478, 3]`` px (NaN without a face), valid ``[T]``, mouth ``[T, 48, 64]`` uint8, flow
    ``[T - 1, 8, 8, 2]`` (NaN next to a missing face), audio ``[640 T]`` (empty for a silent file), size
    ``[2]`` height and width."""

    landmarks: np.ndarray
    valid: np.ndarray
    mouth: np.ndarray
    flow: np.ndarray
    audio: np.ndarray
    size: np.ndarray

    def __len__(self) -> int:
        return len(self.landmarks)


def track_file(path: Path, cache: Path | None = None) -> Tracked:
    """Look at a video file, or read what was seen before from ``cache``.

    Raises:
        BadInput: the file is missing or cannot be decoded.
    """
    if not path.is_file():
        raise BadInput(f"No video file at {path}: check the path.")
    kept = None
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        kept = cache / f"{hashlib.sha256(path.read_bytes()).hexdigest()[:24]}-{FORMAT}.npz"
        if kept.is_file():
            try:
                with np.load(kept) as stored:
                    return Tracked(**{f.name: stored[f.name] for f in fields(Tracked)})
            except (OSError, ValueError, KeyError, zipfile.BadZipFile):
                kept.unlink()
    tracked = _look(path)
    if kept is not None:
        partial = kept.with_suffix(f".{os.getpid()}.npz")
        np.savez_compressed(partial, **{f.name: getattr(tracked, f.name) for f in fields(Tracked)})
        os.replace(partial, kept)
    return tracked


def _look(path: Path) -> Tracked:
    points, valid, patches, size = [], [], [], (0, 0)
    with FaceTracker() as tracker:
        for frame in iter_frames(path):
            faces = tracker.track([frame])
            size = frame.shape[:2]
            points.append(faces.landmarks[0])
            valid.append(bool(faces.valid[0]))
            patches.append(mouth_patch(frame, points[-1]) if valid[-1] else np.zeros((48, 64), np.uint8))
    landmarks, seen = np.array(points), np.array(valid)
    audio = np.zeros(0, np.float32)
    if has_audio(path):
        wave, audio = read_audio(path), np.zeros(len(landmarks) * SAMPLES_PER_FRAME, np.float32)
        audio[: len(wave)] = wave[: len(audio)]
    flow = _flow(path, landmarks, seen)
    return Tracked(landmarks, seen, np.array(patches), flow, audio, np.array(size))


def _flow(path: Path, landmarks: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Second pass over the frames, because the stabiliser looks ahead."""
    result = np.full((max(0, len(landmarks) - 1), CELLS, CELLS, 2), np.nan, np.float32)
    if valid.sum() < 2:
        return result
    to_square = _stabiliser(landmarks, valid)
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    percent = 100 * FACE_SQUARE[2] / FLOW_SIDE
    before = None
    for index, frame in enumerate(iter_frames(path)):
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        now = cv2.warpAffine(
            grey,
            to_square[index],
            (FLOW_SIDE, FLOW_SIDE),
            flags=cv2.INTER_AREA,
            borderMode=cv2.BORDER_REPLICATE,
        )
        if before is not None and valid[index] and valid[index - 1]:
            field = method.calc(before, now, None) * percent
            result[index - 1] = cv2.resize(field, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
        before = now
    return result


def _stabiliser(landmarks: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Image → face square ``[T, 2, 3]``, following the head slowly, so that its jitter stays visible."""
    times = np.arange(len(landmarks))
    known = np.array([to_canonical(p) for p in landmarks[valid]]).reshape(-1, 6)
    values = np.stack([np.interp(times, times[valid], column) for column in known.T], 1)
    if len(values) >= STABILISER_FRAMES:
        values = savgol_filter(values, STABILISER_FRAMES, 1, axis=0)
    matrix = values.reshape(-1, 2, 3) * (FLOW_SIDE / FACE_SQUARE[2])
    matrix[:, :, 2] += FLOW_SIDE / 2 - np.array(FACE_SQUARE[:2]) * FLOW_SIDE / FACE_SQUARE[2]
    return matrix
