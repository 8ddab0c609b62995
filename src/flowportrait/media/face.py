"""Faces in pixels: 478 landmarks and 52 ARKit blendshapes from MediaPipe, one face per frame, and how they are turned.

Landmarks are ``(x, y, z)`` in pixels of the given frame; z is depth relative to the face centre on the same
scale as x, smaller is nearer. Frames without a face carry NaN and ``valid`` is False there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.landmarker_api import landmarker_api
from flowportrait.media.model_file import face_landmarker_path
from flowportrait.media.quiet import native_chatter_silenced

N_LANDMARKS = 478
N_BLENDSHAPES = 52


@dataclass(frozen=True)
class Faces:
    """One face per frame: landmarks ``[T, 478, 3]`` px, blendshapes ``[T, 52]`` in [0, 1], valid ``[T]`` bool,
    count ``[T]`` faces seen."""

    landmarks: np.ndarray
    blendshapes: np.ndarray
    valid: np.ndarray
    count: np.ndarray


class FaceTracker:
    """Landmarks for a stream of frames of one video. Not shared between videos; use as a context manager.

    Several faces: in the first frame (of each shot, see ``new_shot``) the largest is taken, or the ``face``-th from the
    left, afterwards the one nearest to the last position.
    """

    def __init__(
        self, max_faces: int = 2, still: bool = False, model: str | None = None, face: int | None = None
    ) -> None:
        api = landmarker_api()
        # With more than one face allowed MediaPipe does no temporal smoothing of its own, so lips have no lag.
        options = api.FaceLandmarkerOptions(
            base_options=api.BaseOptions(model_asset_path=str(face_landmarker_path(model))),
            running_mode=api.RunningMode.IMAGE if still else api.RunningMode.VIDEO,
            num_faces=max(max_faces, 4 if face else 1),
            output_face_blendshapes=True,
        )
        self._still = still
        self._wanted, self._first_shot = face, True
        with native_chatter_silenced():
            self._landmarker: Any = api.FaceLandmarker.create_from_options(options)
        self._warm = False
        self._time_ms = 0
        self._last: np.ndarray | None = None

    def __enter__(self) -> FaceTracker:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._landmarker.close()

    def detect(self, frame: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """All faces of one RGB frame, largest first, as (landmarks ``[478, 3]`` px, blendshapes ``[52]``)."""
        api = landmarker_api()
        image = api.Image(image_format=api.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
        if self._warm:
            result = self._run(image)
        else:
            # The first detection loads the networks, with remarks of its own.
            with native_chatter_silenced():
                result = self._run(image)
            self._warm = True
        height, width = frame.shape[:2]
        scale = np.array([width, height, width], np.float32)
        faces = [
            (
                np.array([(p.x, p.y, p.z) for p in points], np.float32) * scale,
                np.array([shape.score for shape in shapes], np.float32),
            )
            for points, shapes in zip(result.face_landmarks, result.face_blendshapes, strict=True)
        ]
        return sorted(faces, key=lambda face: -face_height(face[0]))

    def _run(self, image: Any) -> Any:
        if self._still:
            return self._landmarker.detect(image)
        self._time_ms += 40
        return self._landmarker.detect_for_video(image, self._time_ms)

    def track(
        self, frames: Iterable[np.ndarray], inspect: Callable[[np.ndarray, np.ndarray | None], None] | None = None
    ) -> Faces:
        """Follow one face through ``frames`` (``[H, W, 3]`` uint8 RGB).

        inspect: called with each frame and the landmarks ``[478, 3]`` px of the face, None where there is none.
        """
        landmarks, blendshapes, valid, count = [], [], [], []
        for frame in frames:
            found = self.detect(frame)
            count.append(len(found))
            if found:
                points, shapes = self._same_face(found)
                self._last = points
            else:
                points = np.full((N_LANDMARKS, 3), np.nan, np.float32)
                shapes = np.full(N_BLENDSHAPES, np.nan, np.float32)
            if inspect is not None:
                inspect(frame, points if found else None)
            landmarks.append(points)
            blendshapes.append(shapes)
            valid.append(bool(found))
        return Faces(
            np.array(landmarks, np.float32).reshape(-1, N_LANDMARKS, 3),
            np.array(blendshapes, np.float32).reshape(-1, N_BLENDSHAPES),
            np.array(valid, bool),
            np.array(count, int),
        )

    def new_shot(self) -> None:
        """Forget where the face was: the next frame comes after a cut. Where fewer faces are seen then than the wanted
        one's number, the largest is taken."""
        if self._last is not None:
            self._last, self._first_shot = None, False

    def _same_face(self, found: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        if self._last is None:
            if self._wanted is None or (self._wanted > len(found) and not self._first_shot):
                return found[0]
            if not 1 <= self._wanted <= len(found):
                raise BadInput(f"Where the video first shows faces there are {len(found)}, no number {self._wanted}.")
            return sorted(found, key=lambda face: float(face[0][:, 0].mean()))[self._wanted - 1]
        centre = self._last[:, :2].mean(0)
        return min(found, key=lambda face: float(np.hypot(*(face[0][:, :2].mean(0) - centre))))


def face_height(landmarks: np.ndarray) -> float:
    """Vertical extent of the landmarks in pixels."""
    return float(np.ptp(landmarks[:, 1]))


def extent(landmarks: np.ndarray) -> float:
    """The longer side in pixels of the box that holds landmarks ``[478, ≥ 2]``."""
    return float(np.ptp(landmarks[:, :2], axis=0).max())


def yaw(landmarks: np.ndarray) -> float:
    """How far a face with landmarks ``[478, 3]`` px is turned aside, in degrees: the slant of its eye line in depth."""
    across = landmarks[263] - landmarks[33]
    return float(np.degrees(np.arctan2(across[2], np.hypot(across[0], across[1]))))


def roll(landmarks: np.ndarray) -> float:
    """How far a face with landmarks ``[478, ≥ 2]`` px lies on its side, in degrees from −180 to 180: the slant of its
    eye line in the picture."""
    across = landmarks[263] - landmarks[33]
    return float(np.degrees(np.arctan2(across[1], across[0])))


def bridge(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Tracks ``[T, ...]`` with the frames that are not valid filled in linearly, held at the ends."""
    if valid.all():
        return values.astype(np.float32)
    known = np.flatnonzero(valid)
    flat = values.reshape(len(values), -1)
    filled = np.stack([np.interp(np.arange(len(values)), known, column[known]) for column in flat.T], 1)
    return filled.reshape(values.shape).astype(np.float32)
