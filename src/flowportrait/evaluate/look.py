"""Looking at a video: the one pass that fills a ``Tracked``.

The flow is signed and lives in a frame that follows the head below about 3 Hz, in per cent of the distance between
the outer eye corners per frame, averaged over an 8 × 8 grid of face cells.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from scipy.signal import savgol_filter

from flowportrait.evaluate import points68
from flowportrait.evaluate.optical import flow_method
from flowportrait.evaluate.steadiness import BorderProbe
from flowportrait.evaluate.tracked import Tracked
from flowportrait.media.align import MOUTH_PATCH, mouth_patch, to_canonical
from flowportrait.media.audio import has_audio, read_audio
from flowportrait.media.container import open_media, video_stream
from flowportrait.media.face import FaceTracker
from flowportrait.media.video import SAMPLES_PER_FRAME, iter_frames

FLOW_SIDE = 96
"""Pixels of the stabilised face square that the flow is measured on."""
CELLS = 8
FACE_SQUARE = (0.0, 0.45, 2.0)
"""Centre and width of that square in outer-eye-corner distances."""
CROP_SIDE = 128
CROP_EVERY = 5
"""Frames between the stored crops; every file has its own at the same moments, so clips can be held against
each other."""
MOST_CROPS = 60
STABILISER_FRAMES = 9
CHEEKS = (slice(54, 66), (slice(16, 32), slice(64, 80)))
"""Rows and columns of the stabilised square that hardly move with speech."""
SAME_PICTURE = 0.06
"""Mean change in levels below which two pictures are the same, re-encoded."""
MEMORY = 600_000_000
"""Bytes of frames that are kept for the second pass; longer videos are decoded twice."""


def look(path: Path) -> Tracked:
    """Everything there is to see and hear in a video file.

    Raises:
        BadInput: the file cannot be decoded.
    """
    points, shapes, valid, patches, kept, size, room = [], [], [], [], [], (0, 0), MEMORY
    with FaceTracker() as tracker:
        for frame in iter_frames(path):
            faces = tracker.track([frame])
            size, room = frame.shape[:2], room - frame.nbytes
            points.append(faces.landmarks[0])
            shapes.append(faces.blendshapes[0])
            valid.append(bool(faces.valid[0]))
            patches.append(mouth_patch(frame, points[-1]) if valid[-1] else np.zeros(MOUTH_PATCH, np.uint8))
            if room > 0:
                kept.append(frame)
            else:
                kept.clear()
    landmarks, seen = np.array(points), np.array(valid)
    audio = np.zeros(0, np.float32)
    if has_audio(path):
        wave, audio = read_audio(path), np.zeros(len(landmarks) * SAMPLES_PER_FRAME, np.float32)
        audio[: len(wave)] = wave[: len(audio)]
    found = _second_pass(kept if len(kept) == len(landmarks) else iter_frames(path), landmarks, seen)
    return Tracked(
        landmarks=landmarks,
        blendshapes=np.array(shapes),
        valid=seen,
        mouth=np.array(patches),
        audio=audio,
        size=np.array(size),
        source_fps=np.array(_source_fps(path)),
        **found,
    )


def _second_pass(frames: Iterable[np.ndarray], landmarks: np.ndarray, valid: np.ndarray) -> dict[str, np.ndarray]:
    """What needs the whole track first, because the stabiliser looks ahead."""
    count = len(landmarks)
    every = max(CROP_EVERY, -(-count // (MOST_CROPS * CROP_EVERY)) * CROP_EVERY)
    found: dict[str, np.ndarray] = {
        "flow": np.full((max(0, count - 1), CELLS, CELLS, 2), np.nan, np.float32),
        "skin": np.full((count, 3), np.nan, np.float32),
        "still": np.zeros(max(0, count - 1), bool),
        "points": np.zeros((0, 68, 2), np.float32),
        "crops": np.zeros((0, CROP_SIDE, CROP_SIDE, 3), np.uint8),
        "crop_at": np.zeros(0, int),
        "border": np.zeros(2, np.float32),
    }
    if not valid.any():
        return found
    to_square, around = stabiliser(landmarks, valid), points68.boxes(landmarks, valid)
    outline = points68.available()
    method, percent = flow_method(), 100 * FACE_SQUARE[2] / FLOW_SIDE
    probe, crops, moments, outlines = BorderProbe(landmarks[valid]), [], [], []
    frame_before = last = None
    for index, frame in enumerate(frames):
        now = _warped(frame, to_square[index], FLOW_SIDE)
        grey = cv2.cvtColor(now, cv2.COLOR_RGB2GRAY)
        if frame_before is not None and last is not None:
            found["still"][index - 1] = _change(frame_before, frame, around[index]) < SAME_PICTURE
            if valid[index] and valid[index - 1]:
                field = method(last, grey) * percent
                found["flow"][index - 1] = cv2.resize(field, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
        frame_before, last = frame, grey
        if valid[index]:
            found["skin"][index] = np.mean([now[CHEEKS[0], cheek].mean((0, 1)) for cheek in CHEEKS[1]], 0)
        if outline:
            outlines.append(points68.points(frame, around[index]))
        if index % every == 0 and valid[index]:
            crops.append(_warped(frame, to_square[index] * (CROP_SIDE / FLOW_SIDE), CROP_SIDE))
            moments.append(index)
        probe.add(frame)
    found["border"] = probe.jumps()
    if outlines:
        found["points"] = np.array(outlines)
    if crops:
        found |= {"crops": np.array(crops), "crop_at": np.array(moments)}
    return found


def _change(before: np.ndarray, now: np.ndarray, box: np.ndarray) -> float:
    """Mean change in levels inside the face's box, as the picture is: no stabiliser moves it."""
    left, top, right, bottom = (max(0, round(float(side))) for side in box)
    one, other = (picture[top:bottom, left:right] for picture in (before, now))
    return float(cv2.absdiff(one, other).mean()) if one.size else 0.0


def _warped(frame: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    return cv2.warpAffine(frame, matrix, (side, side), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)


def stabiliser(landmarks: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Image → face square ``[T, 2, 3]``, following the head slowly, so that its jitter stays visible."""
    times = np.arange(len(landmarks))
    known = np.array([to_canonical(p) for p in landmarks[valid]]).reshape(-1, 6)
    values = np.stack([np.interp(times, times[valid], column) for column in known.T], 1)
    if len(values) >= STABILISER_FRAMES:
        values = savgol_filter(values, STABILISER_FRAMES, 1, axis=0)
    matrix = values.reshape(-1, 2, 3) * (FLOW_SIDE / FACE_SQUARE[2])
    matrix[:, :, 2] += FLOW_SIDE / 2 - np.array(FACE_SQUARE[:2]) * FLOW_SIDE / FACE_SQUARE[2]
    return matrix


def _source_fps(path: Path) -> float:
    with open_media(path) as container:
        stream = video_stream(container)
        rate = stream.average_rate if stream else None
    return float(rate) if rate else 0.0
