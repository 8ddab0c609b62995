"""Faces through a video: one track per person and shot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np

from flowportrait.media.crop import mouth_patch, window_around
from flowportrait.media.faces import FaceTracker
from flowportrait.media.video import CutDetector

# --- Tracks -----------------------------------------------------------------------------
#
# Each face of a frame goes to the track with the nearest last face, or begins a new one. A track ends at a cut, when
# its face is missing for longer than a dropout of the tracker, or after a minute.

MAX_FACES_PER_FRAME = 3
MAX_TRACK_FRAMES = 1500
"""Frames after which a track is split: a minute."""
MAX_MISSING_FRAMES = 5
"""Frames that a face may be missing for."""
MAX_FACE_STEP = 0.5
"""Largest distance that a face moves between two frames, in its own heights."""
TRACKING_SIDE = 960
"""Longer side of the picture that the tracker gets; landmarks are in pixels of the frame itself."""
THUMBNAIL_SIDE = 128
"""Side of the pictures of faces in px."""
MEASURE_EVERY = 5
"""Frames from one measurement of sharpness and light to the next."""
_MEASURED_SIDE = 96


@dataclass
class FaceTrack:
    """One face from frame ``start`` on.

    landmarks ``[478, 3]``, blendshapes ``[52]`` and mouth patch: of every frame, None where the face is missing.
    sharpness and light: of every fifth frame. picture: one picture of the face ``[128, 128, 3]``.
    """

    start: int
    size: tuple[int, int]
    landmarks: list[np.ndarray | None] = field(default_factory=list)
    blendshapes: list[np.ndarray | None] = field(default_factory=list)
    mouth: list[np.ndarray | None] = field(default_factory=list)
    sharpness: list[float] = field(default_factory=list)
    light: list[float] = field(default_factory=list)
    picture: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.landmarks)

    @property
    def stop(self) -> int:
        """The frame after the last one."""
        return self.start + len(self)

    def last(self) -> np.ndarray:
        """Return the landmarks of the last frame with the face."""
        return next(points for points in reversed(self.landmarks) if points is not None)

    def missing_frames(self) -> int:
        """Return for how many frames the face has been missing."""
        return next(i for i, points in enumerate(reversed(self.landmarks)) if points is not None)

    def see(self, frame: np.ndarray, points: np.ndarray, shapes: np.ndarray) -> None:
        """Add a frame with the face."""
        if len(self) % MEASURE_EVERY == 0:
            self._measure_picture(frame, points)
        self.landmarks.append(points)
        self.blendshapes.append(shapes)
        self.mouth.append(mouth_patch(frame, points))

    def miss(self) -> None:
        """Add a frame without the face."""
        for column in (self.landmarks, self.blendshapes, self.mouth):
            column.append(None)

    def trim(self) -> FaceTrack:
        """Remove the frames without a face at the end, and return the track."""
        for _ in range(self.missing_frames()):
            for column in (self.landmarks, self.blendshapes, self.mouth):
                column.pop()
        return self

    def _measure_picture(self, frame: np.ndarray, points: np.ndarray) -> None:
        low, high = points[:, :2].min(0), points[:, :2].max(0)
        centre, side = (low + high) / 2, float((high - low).max())
        grey = cv2.cvtColor(_square(frame, centre, side, _MEASURED_SIDE), cv2.COLOR_RGB2GRAY)
        # Relative to the face's own contrast: otherwise dark faces would count as blurred.
        contrast = float(grey.std()) + 1.0
        self.sharpness.append(float(cv2.Laplacian(grey, cv2.CV_32F).std()) / contrast)
        self.light.append(float(grey.mean()))
        if self.picture is None or len(self) == 2 * MEASURE_EVERY:
            self.picture = face_thumbnail(frame, points)


def face_thumbnail(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the face with landmarks ``[478, ≥ 2]`` px in ``frame``, with a margin, ``[128, 128, 3]`` uint8."""
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    return _square(frame, (low + high) / 2, 1.7 * float((high - low).max()), THUMBNAIL_SIDE)


def track_faces(frames: Iterable[np.ndarray]) -> Iterator[FaceTrack]:
    """Yield the tracks of a video's frames ``[H, W, 3]`` uint8 RGB at 25 fps, each as soon as it ends."""
    cut, open_tracks = CutDetector(), list[FaceTrack]()
    with FaceTracker(max_faces=MAX_FACES_PER_FRAME) as tracker:
        for index, frame in enumerate(frames):
            if cut(frame):
                yield from _close_tracks(open_tracks, lambda track: True)
            faces = _detect(tracker, frame)
            for track, face in _assign(open_tracks, faces):
                if face is None:
                    track.miss()
                else:
                    track.see(frame, *face)
                    faces = [other for other in faces if other is not face]
            for points, shapes in faces:
                track = FaceTrack(index, frame.shape[:2])
                track.see(frame, points, shapes)
                open_tracks.append(track)
            yield from _close_tracks(
                open_tracks, lambda track: track.missing_frames() > MAX_MISSING_FRAMES or len(track) >= MAX_TRACK_FRAMES
            )
    yield from _close_tracks(open_tracks, lambda track: True)


Face = tuple[np.ndarray, np.ndarray]


def _detect(tracker: FaceTracker, frame: np.ndarray) -> list[Face]:
    scale = min(1.0, TRACKING_SIDE / max(frame.shape[:2]))
    small = frame if scale == 1.0 else cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    ratio = frame.shape[1] / small.shape[1]
    return [(points * ratio, shapes) for points, shapes in tracker.detect(small)]


def _assign(tracks: list[FaceTrack], faces: list[Face]) -> list[tuple[FaceTrack, Face | None]]:
    """Assign faces to tracks, nearest first, each face to one track at most; None for a track without a face."""
    pairs = []
    for track in tracks:
        last = track.last()
        reach = MAX_FACE_STEP * float(np.ptp(last[:, 1])) * (1 + track.missing_frames())
        for face in faces:
            distance = float(np.linalg.norm((face[0] - last)[:, :2].mean(0)))
            if distance < reach:
                pairs.append((distance, track, face))
    assigned: dict[int, Face] = {}
    for _, track, face in sorted(pairs, key=lambda pair: pair[0]):
        if id(track) not in assigned and all(face is not other for other in assigned.values()):
            assigned[id(track)] = face
    return [(track, assigned.get(id(track))) for track in tracks]


def _close_tracks(tracks: list[FaceTrack], over: Callable[[FaceTrack], bool]) -> Iterator[FaceTrack]:
    for track in [track for track in tracks if over(track)]:
        tracks.remove(track)
        yield track.trim()


def _square(frame: np.ndarray, centre: np.ndarray, side: float, size: int) -> np.ndarray:
    """Return the square of ``side`` px around ``centre`` at ``size`` px; beyond the frame its edge is repeated."""
    scale = size / max(side, 1.0)
    reach = max(1, int(0.5 / scale))
    frame, corner = window_around(frame, np.array([centre - side / 2, centre + side / 2]), reach + 2)
    centre = centre - corner
    matrix = np.array([[scale, 0, size / 2 - scale * centre[0]], [0, scale, size / 2 - scale * centre[1]]])
    if scale < 0.5:
        frame = cv2.blur(frame, (reach, reach))
    return cv2.warpAffine(frame, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
