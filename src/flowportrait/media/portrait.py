"""A photo to a portrait: the face found, cut out as a square, with its landmarks.

    photo ──find──► largest face ──to_crop──► 512 x 512 crop, face about half its side ──► landmarks in the
    crop

The crop keeps the way back (``to_crop``), so drawn frames can be put into the photo. Of a photo that is too large for
video a smaller copy is shown (``Photo``), while the crop is sampled from its own pixels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import cv2
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.crop import apply_affine, crop_transform, resize_transform, sample_crop
from flowportrait.media.face import FaceTracker, extent, roll, yaw
from flowportrait.media.occlusion import cut_by_edge, mouth_covered
from flowportrait.media.search import MOST_FACES, SMALLEST_PX, Found, find_faces, same_face, stands_when_turned

LARGEST_SIDE = 1920
"""Px of the longer side of a picture that ordinary video players take."""

_SMALL_FACE_PX = 64.0
_LARGEST_YAW = 60.0
_LARGEST_ROLL = 60.0
_SIZES = (512, 768, 1024)
_ENLARGEMENT = 1.5
"""A drawn square is picked so large that pasting it back enlarges it by no more than this."""


@dataclass(frozen=True)
class Photo:
    """A photo with its own pixels and as it is shown: pixels, shown ``[H, W, 3]`` uint8 RGB, one the other scaled."""

    pixels: np.ndarray
    shown: np.ndarray

    @classmethod
    def for_video(cls, pixels: np.ndarray, side: int = LARGEST_SIDE) -> Photo:
        """Shown with at most ``side`` px of its longer side."""
        return cls(pixels, _limited(pixels, side))


@dataclass(frozen=True)
class Portrait:
    """One person ready to be drawn.

    image ``[H, W, 3]`` uint8 RGB, the whole photo as it is shown; crop ``[S, S, 3]`` uint8, the face about half its
    side; landmarks ``[478, 3]`` float32 in crop pixels; blendshapes ``[52]``; to_crop ``[2, 3]`` affine map from
    pixels of ``image`` to crop pixels.
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
        """Portrait of a face of ``image`` ``[H, W, 3]`` uint8 RGB, or of a ``Photo``; ``name`` appears in messages.

        size: side of the crop, or None for what the photo's own resolution asks for (512, 768 or 1024).
        face: which one, counted from the left beginning at 1; the largest by default, with a warning if there are
        several.

        Raises:
            BadInput: no face or no such face is found, it is smaller than 24 px, turned away over 60 degrees, or lies
                on its side.
        """
        photo = image if isinstance(image, Photo) else Photo(image, image)
        image, shrink = photo.shown, photo.shown.shape[0] / photo.pixels.shape[0]
        landmarks, blendshapes = _chosen(_found(image, name), face, name)
        height, aside, tilted = extent(landmarks) / shrink, abs(yaw(landmarks)), abs(roll(landmarks))
        if height < SMALLEST_PX:
            raise BadInput(f"The face in {name} is only {height:.0f} px high: give a larger one.")
        if height < _SMALL_FACE_PX:
            warnings.warn(f"The face in {name} is only {height:.0f} px high and will be soft.", stacklevel=2)
        if tilted > _LARGEST_ROLL:
            raise BadInput(f"The face in {name} lies on its side, by {tilted:.0f} degrees: rotate the photo upright.")
        if aside > _LARGEST_YAW:
            raise BadInput(f"The face in {name} is turned {aside:.0f} degrees away: give a photo that shows both eyes.")
        if size is None:
            side = 1 / np.sqrt(abs(np.linalg.det(crop_transform(landmarks, image.shape[:2], 1)[:, :2])))
            size = next((s for s in _SIZES if s * _ENLARGEMENT >= side), _SIZES[-1])
        to_crop = crop_transform(landmarks, image.shape[:2], size)
        to_shown = np.vstack([resize_transform(photo.pixels.shape, image.shape), [0, 0, 1]])
        crop = sample_crop(photo.pixels, to_crop @ to_shown, size)
        cut_off = cut_by_edge(image.shape, landmarks)
        landmarks = apply_affine(to_crop, landmarks)
        with FaceTracker(still=True, max_faces=MOST_FACES) as tracker:
            again = [face for face in tracker.detect(crop) if same_face(face[0], landmarks)]
        if again:
            landmarks, blendshapes = again[0]
        if cut_off:
            warnings.warn(f"The {cut_off} in {name} is cut off by the photo's edge: the rest is made up.", stacklevel=2)
        elif mouth_covered(crop, landmarks):
            warnings.warn(f"The mouth in {name} seems to be covered: lips will be drawn over it.", stacklevel=2)
        return cls(image, crop, landmarks.astype(np.float32), blendshapes, to_crop)


def _limited(image: np.ndarray, side: int) -> np.ndarray:
    """``[H, W, 3]`` scaled down so that its longer side is ``side`` px; itself if it is no larger."""
    if max(image.shape[:2]) <= side:
        return image
    scale = side / max(image.shape[:2])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _found(image: np.ndarray, name: str) -> list[Found]:
    faces = find_faces(image)
    if not faces and stands_when_turned(image):
        raise BadInput(f"No face stands upright in {name}, but one would if it were turned: rotate the photo upright.")
    if not faces:
        raise BadInput(f"No face found in {name}: give a photo with one clearly visible face.")
    return faces


def _chosen(faces: list[Found], face: int | None, name: str) -> Found:
    if face is None:
        if len(faces) > 1:
            warnings.warn(
                f"{len(faces)} faces found in {name}: the largest one is used; --face N picks the N-th from the left.",
                stacklevel=3,
            )
        return faces[0]
    if not 1 <= face <= len(faces):
        raise BadInput(f"There is no face number {face} in {name}: give a number from 1 to {len(faces)}.")
    return sorted(faces, key=lambda found: float(found[0][:, 0].mean()))[face - 1]
