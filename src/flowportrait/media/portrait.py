"""Turn a photo into a portrait: find its faces and cut one of them out as a square with landmarks.

    photo ──find──► largest face ──to_crop──► 512 x 512 crop, face about half its side ──► landmarks in the crop

The crop keeps the affine map from the photo (``to_crop``), so that drawn frames can be pasted back. A photo that is too
large for video is shown as a smaller copy (``Photo``), while the crop is sampled from its own pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.crop import apply_affine, crop_transform, resize_transform, sample_crop
from flowportrait.media.faces import FaceTracker, face_extent, face_roll, face_yaw
from flowportrait.media.occlusion import part_cut_by_edge
from flowportrait.media.portrait_notes import portrait_notes

# --- Finding faces ----------------------------------------------------------------------
#
#     whole picture ─► with a margin around it ─► tiles of 1, ½, ⅓, ⅕ of its shorter side
#
# until a face is found in windows no more than six times its height: in larger ones others of its size are missed.
#
# The detector reduces its input to 128 px, so small faces are missed in the whole picture. Faces found in tiles must be
# found again, in the same place, in two closer views: a coffee cup is taken for a face once, but not three times.

DetectedFace = tuple[np.ndarray, np.ndarray]
"""A detected face: landmarks ``[478, 3]`` px and blendshapes ``[52]``."""

MAX_PHOTO_FACES = 8
MIN_FACE_PX = 24.0
"""Height in px of the smallest face that is accepted."""
_SEARCH_SIDE = 1024
_WELL_FOUND = 6.0
"""Side of a window in heights of a face up to which the detector, with 128 px, hardly misses one."""
_AGREEMENT = 0.05
"""Share of its size by which a face may lie elsewhere in a closer view."""
_UPRIGHT = 30.0
"""Degrees of roll up to which a face counts as upright."""


def find_faces(image: np.ndarray) -> list[DetectedFace]:
    """Return the faces in ``image`` ``[H, W, 3]`` uint8 RGB with landmarks in its pixels, largest first."""
    faces: list[DetectedFace] = []
    searched = 0.0
    with FaceTracker(still=True, max_faces=MAX_PHOTO_FACES) as tracker:
        for search_index, windows in enumerate(_search_windows(image.shape[:2])):
            # Where one small face was found, the detector may have missed others of its size.
            if faces and searched < _WELL_FOUND * face_extent(faces[0][0]):
                break
            searched = max(side for _, _, side in windows)
            new: list[DetectedFace] = []
            for x, y, side in windows:
                for face in _detect_window(tracker, image, x, y, side):
                    if not any(is_same_face(face[0], other[0]) for other in [*faces, *new]):
                        new.append(face)
            if search_index:
                new = [face for face in new if _is_confirmed(tracker, image, face[0])]
            faces = sorted([*faces, *new], key=lambda face: -face_extent(face[0]))
    return faces[:MAX_PHOTO_FACES]


def has_upright_face_when_rotated(image: np.ndarray) -> bool:
    """Return whether a face stands upright in ``image`` once it is rotated by one, two or three quarter turns."""
    return any(True for _ in faces_in_rotated_image(image))


def faces_in_rotated_image(image: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rotated copies of ``image`` in which a face stands upright, each with the landmarks ``[478, 3]`` of that
    face.

    It is rotated by one, three and two quarter turns; landmarks are in px of the copy.
    """
    with FaceTracker(still=True, max_faces=MAX_PHOTO_FACES) as tracker:
        for quarters in (1, 3, 2):
            rotated = np.ascontiguousarray(np.rot90(image, quarters))
            for points, _ in _detect_window(tracker, rotated, 0, 0, max(rotated.shape[:2])):
                if abs(face_roll(points)) < _UPRIGHT and _is_confirmed(tracker, rotated, points):
                    yield rotated, points


def _is_confirmed(tracker: FaceTracker, image: np.ndarray, landmarks: np.ndarray) -> bool:
    """Return whether a face is found again, in the same place, in two closer views."""
    size, centre = face_extent(landmarks), landmarks[:, :2].mean(0)
    for room in (1.6, 2.4):
        side = round(room * size)
        x, y = np.round(centre - side / 2).astype(int)
        views = _detect_window(tracker, image, int(x), int(y), side)
        shifts = [np.abs(points - landmarks)[:, :2].mean() for points, _ in views]
        if not shifts or min(shifts) > _AGREEMENT * size:
            return False
    return True


def _search_windows(shape: tuple[int, int]) -> Iterator[list[tuple[int, int, int]]]:
    """Yield lists of square windows (left, top, side), each list a closer search than the one before."""
    height, width = shape
    yield [(0, 0, max(shape))]
    pad = max(shape) // 4
    yield [(-pad, -pad, max(shape) + 2 * pad)]
    for divisor in (1, 2, 3, 5):
        side = min(shape) // divisor
        if side >= 2 * MIN_FACE_PX:
            yield [(x, y, side) for y in _tile_starts(height, side) for x in _tile_starts(width, side)]


def _tile_starts(length: int, side: int) -> list[int]:
    count = 1 + -(-2 * (length - side) // side)
    return sorted({int(start) for start in np.linspace(0, length - side, max(count, 1))})


def _detect_window(tracker: FaceTracker, image: np.ndarray, x: int, y: int, side: int) -> list[DetectedFace]:
    scale = min(1.0, _SEARCH_SIDE / side) if side > 256 else 512 / side
    size = round(side * scale)
    matrix = np.array([[scale, 0, -x * scale], [0, scale, -y * scale]])
    faces = tracker.detect(sample_crop(image, matrix, size, border=cv2.BORDER_CONSTANT))
    to_image = cv2.invertAffineTransform(matrix)
    return [(apply_affine(to_image, points), shapes) for points, shapes in faces]


def is_same_face(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two sets of landmarks lie in the same place."""
    gap = np.linalg.norm(a[:, :2].mean(0) - b[:, :2].mean(0))
    return bool(gap < 0.4 * max(face_extent(a), face_extent(b)))


# --- Photo and portrait -----------------------------------------------------------------

MAX_VIDEO_SIDE = 1920
"""Longer side in px of a picture that ordinary video players accept."""

_SMALL_FACE_PX = 64.0
_LARGEST_YAW = 60.0
_LARGEST_ROLL = 60.0
_SIZES = (512, 768, 1024)
_ENLARGEMENT = 1.5
"""The side of the crop is chosen so large that pasting it back enlarges it by no more than this factor."""


@dataclass(frozen=True)
class Photo:
    """A photo at its own resolution and at that of the video.

    Attributes:
        pixels: ``[H, W, 3]`` uint8 RGB.
        video_pixels: the same picture as the video shows it, perhaps scaled down.
    """

    pixels: np.ndarray
    video_pixels: np.ndarray

    @classmethod
    def for_video(cls, pixels: np.ndarray, side: int = MAX_VIDEO_SIDE) -> Photo:
        """Return a photo that is shown with at most ``side`` px on its longer side."""
        return cls(pixels, _scaled_down(pixels, side))


@dataclass(frozen=True)
class Portrait:
    """One person, prepared to be drawn.

    Attributes:
        image: ``[H, W, 3]`` uint8 RGB, the whole photo as it is shown.
        crop: ``[S, S, 3]`` uint8, the face about half its side.
        landmarks: ``[478, 3]`` float32 in px of the crop.
        blendshapes: ``[52]``.
        to_crop: ``[2, 3]`` affine map from pixels of ``image`` to pixels of the crop.
    """

    image: np.ndarray
    crop: np.ndarray
    landmarks: np.ndarray
    blendshapes: np.ndarray
    to_crop: np.ndarray

    @classmethod
    def from_image(
        cls, image: np.ndarray | Photo, size: int | None = 512, name: str = "the photo", face: int | None = None
    ) -> Portrait:
        """Return the portrait of a face in a picture.

        Args:
            image: ``[H, W, 3]`` uint8 RGB, or a ``Photo``.
            size: side of the crop, or None for the one that fits the photo's own resolution (512, 768 or 1024).
            name: the photo's name in messages.
            face: which face, counted from the left beginning at 1; the largest by default, with a warning if there are
                several.

        Raises:
            BadInput: no face or no such face is found, it is smaller than 24 px, turned away over 60 degrees, or lies
                on its side.
        """
        photo = image if isinstance(image, Photo) else Photo(image, image)
        image, shrink = photo.video_pixels, photo.video_pixels.shape[0] / photo.pixels.shape[0]
        landmarks, blendshapes = _choose_face(_find_faces_or_fail(image, name), face, name)
        height, yaw_degrees, roll_degrees = (
            face_extent(landmarks) / shrink,
            abs(face_yaw(landmarks)),
            abs(face_roll(landmarks)),
        )
        if height < MIN_FACE_PX:
            raise BadInput(f"The face in {name} is only {height:.0f} px high: give a larger one.")
        if height < _SMALL_FACE_PX:
            warnings.warn(f"The face in {name} is only {height:.0f} px high and will be soft.", stacklevel=2)
        if roll_degrees > _LARGEST_ROLL:
            raise BadInput(
                f"The face in {name} lies on its side, by {roll_degrees:.0f} degrees: rotate the photo upright."
            )
        if yaw_degrees > _LARGEST_YAW:
            raise BadInput(
                f"The face in {name} is turned {yaw_degrees:.0f} degrees away: give a photo that shows both eyes."
            )
        if size is None:
            side = 1 / np.sqrt(abs(np.linalg.det(crop_transform(landmarks, image.shape[:2], 1)[:, :2])))
            size = next((s for s in _SIZES if s * _ENLARGEMENT >= side), _SIZES[-1])
        to_crop = crop_transform(landmarks, image.shape[:2], size)
        to_shown = np.vstack([resize_transform(photo.pixels.shape, image.shape), [0, 0, 1]])
        crop = sample_crop(photo.pixels, to_crop @ to_shown, size)
        cut_off = part_cut_by_edge(image.shape, landmarks)
        landmarks = apply_affine(to_crop, landmarks)
        with FaceTracker(still=True, max_faces=MAX_PHOTO_FACES) as tracker:
            redetected = [face for face in tracker.detect(crop) if is_same_face(face[0], landmarks)]
        if redetected:
            landmarks, blendshapes = redetected[0]
        if cut_off:
            warnings.warn(f"The {cut_off} in {name} is cut off by the photo's edge: the rest is made up.", stacklevel=2)
        for note in portrait_notes(crop, landmarks, name):
            if not (cut_off and "covered" in note):
                warnings.warn(note, stacklevel=2)
        return cls(image, crop, landmarks.astype(np.float32), blendshapes, to_crop)


def _scaled_down(image: np.ndarray, side: int) -> np.ndarray:
    """Return ``image`` scaled down so that its longer side is ``side`` px; itself if it is no larger."""
    if max(image.shape[:2]) <= side:
        return image
    scale = side / max(image.shape[:2])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _find_faces_or_fail(image: np.ndarray, name: str) -> list[DetectedFace]:
    faces = find_faces(image)
    if not faces and has_upright_face_when_rotated(image):
        raise BadInput(f"No face stands upright in {name}, but one would if it were turned: rotate the photo upright.")
    if not faces:
        raise BadInput(f"No face found in {name}: give a photo with one clearly visible face.")
    return faces


def _choose_face(faces: list[DetectedFace], face: int | None, name: str) -> DetectedFace:
    if face is None:
        if len(faces) > 1:
            warnings.warn(
                f"{len(faces)} faces found in {name}: the largest one is used; --face N picks the N-th from the left.",
                stacklevel=3,
            )
        return faces[0]
    if not 1 <= face <= len(faces):
        wanted = f"give a number from 1 to {len(faces)}" if len(faces) > 1 else "only one face was found"
        raise BadInput(f"There is no face number {face} in {name}: {wanted}.")
    return sorted(faces, key=lambda found: float(found[0][:, 0].mean()))[face - 1]
