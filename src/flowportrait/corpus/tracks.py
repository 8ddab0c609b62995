"""Faces through a video: one track per person and shot.

    frame ─► cut? ─► faces ─► each goes to the track whose last face is nearest, or begins one

A track ends at a cut, when its face is gone for longer than a blink of the tracker, or after a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np

from flowportrait.media.align import around, mouth_patch
from flowportrait.media.face import FaceTracker
from flowportrait.media.shots import CutDetector

MAX_FACES = 3
LONGEST = 1500
"""Frames after which a track is cut: a minute."""
GAP = 5
"""Frames a face may be lost for."""
NEAR = 0.5
"""How far a face moves between two frames at most, in its own heights."""
TRACKING_SIDE = 960
"""Longer side of the picture that the tracker sees; landmarks are in pixels of the frame itself."""
PICTURE = 128
LOOK_EVERY = 5
_LOOK_SIDE = 96


@dataclass
class Track:
    """One face from frame ``start`` on: landmarks ``[478, 3]``, blendshapes ``[52]`` and mouth patch of every frame
    (None where it was lost), sharpness and light of every fifth, and one picture of it ``[128, 128, 3]``."""

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
        return self.start + len(self)

    def last(self) -> np.ndarray:
        """Landmarks of the last frame the face was seen in."""
        return next(points for points in reversed(self.landmarks) if points is not None)

    def lost(self) -> int:
        """For how many frames the face has been gone."""
        return next(i for i, points in enumerate(reversed(self.landmarks)) if points is not None)

    def see(self, frame: np.ndarray, points: np.ndarray, shapes: np.ndarray) -> None:
        """Add what one frame shows."""
        if len(self) % LOOK_EVERY == 0:
            self._look(frame, points)
        self.landmarks.append(points)
        self.blendshapes.append(shapes)
        self.mouth.append(mouth_patch(frame, points))

    def miss(self) -> None:
        """Add a frame without the face."""
        for column in (self.landmarks, self.blendshapes, self.mouth):
            column.append(None)

    def trim(self) -> Track:
        """Without the lost frames at its end."""
        for _ in range(self.lost()):
            for column in (self.landmarks, self.blendshapes, self.mouth):
                column.pop()
        return self

    def _look(self, frame: np.ndarray, points: np.ndarray) -> None:
        low, high = points[:, :2].min(0), points[:, :2].max(0)
        centre, side = (low + high) / 2, float((high - low).max())
        grey = cv2.cvtColor(_square(frame, centre, side, _LOOK_SIDE), cv2.COLOR_RGB2GRAY)
        # Relative to the face's own contrast, or dark faces would count as blurred.
        contrast = float(grey.std()) + 1.0
        self.sharpness.append(float(cv2.Laplacian(grey, cv2.CV_32F).std()) / contrast)
        self.light.append(float(grey.mean()))
        if self.picture is None or len(self) == 2 * LOOK_EVERY:
            self.picture = picture(frame, points)


def picture(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The face with landmarks ``[478, ≥ 2]`` px in ``frame``, with some room, ``[128, 128, 3]`` uint8."""
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    return _square(frame, (low + high) / 2, 1.7 * float((high - low).max()), PICTURE)


def follow(frames: Iterable[np.ndarray]) -> Iterator[Track]:
    """Tracks of a video's frames ``[H, W, 3]`` uint8 RGB at 25 fps, each as soon as it ends."""
    cut, open_tracks = CutDetector(), list[Track]()
    with FaceTracker(max_faces=MAX_FACES) as tracker:
        for index, frame in enumerate(frames):
            if cut(frame):
                yield from _ended(open_tracks, lambda track: True)
            faces = _detect(tracker, frame)
            for track, face in _assign(open_tracks, faces):
                if face is None:
                    track.miss()
                else:
                    track.see(frame, *face)
                    faces = [other for other in faces if other is not face]
            for points, shapes in faces:
                track = Track(index, frame.shape[:2])
                track.see(frame, points, shapes)
                open_tracks.append(track)
            yield from _ended(open_tracks, lambda track: track.lost() > GAP or len(track) >= LONGEST)
    yield from _ended(open_tracks, lambda track: True)


Face = tuple[np.ndarray, np.ndarray]


def _detect(tracker: FaceTracker, frame: np.ndarray) -> list[Face]:
    scale = min(1.0, TRACKING_SIDE / max(frame.shape[:2]))
    small = frame if scale == 1.0 else cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    ratio = frame.shape[1] / small.shape[1]
    return [(points * ratio, shapes) for points, shapes in tracker.detect(small)]


def _assign(tracks: list[Track], faces: list[Face]) -> list[tuple[Track, Face | None]]:
    """Nearest first; each face to one track at most."""
    pairs = []
    for track in tracks:
        last = track.last()
        reach = NEAR * float(np.ptp(last[:, 1])) * (1 + track.lost())
        for face in faces:
            distance = float(np.linalg.norm((face[0] - last)[:, :2].mean(0)))
            if distance < reach:
                pairs.append((distance, track, face))
    taken: dict[int, Face] = {}
    for _, track, face in sorted(pairs, key=lambda pair: pair[0]):
        if id(track) not in taken and all(face is not other for other in taken.values()):
            taken[id(track)] = face
    return [(track, taken.get(id(track))) for track in tracks]


def _ended(tracks: list[Track], over: Callable[[Track], bool]) -> Iterator[Track]:
    for track in [track for track in tracks if over(track)]:
        tracks.remove(track)
        yield track.trim()


def _square(frame: np.ndarray, centre: np.ndarray, side: float, size: int) -> np.ndarray:
    """The square of ``side`` px around ``centre`` at ``size`` px, the frame's edge repeated beyond it."""
    scale = size / max(side, 1.0)
    reach = max(1, int(0.5 / scale))
    frame, corner = around(frame, np.array([centre - side / 2, centre + side / 2]), reach + 2)
    centre = centre - corner
    matrix = np.array([[scale, 0, size / 2 - scale * centre[0]], [0, scale, size / 2 - scale * centre[1]]])
    if scale < 0.5:
        frame = cv2.blur(frame, (reach, reach))
    return cv2.warpAffine(frame, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
