"""The portrait in an uploaded photo, what the page should say about it, and pictures of it for the page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.faces import face_extent
from flowportrait.media.image import WHITE_BACKGROUND, read_image
from flowportrait.media.portrait import Photo, Portrait, find_faces
from flowportrait.media.portrait_notes import portrait_notes
from flowportrait.pipelines.request import parse_colour

STUDIO_FACE_SIZE = 512
"""Side of the drawn face square in pixels, if no other size is chosen."""
_SMALL_PX = 64.0
"""Height of a face in the photo below which it will look soft."""
_PICTURE_PX = 720
"""Longest side of a picture for the page."""


@dataclass(frozen=True)
class FoundPortrait:
    """A portrait, the number of faces in its photo, and sentences for the page."""

    portrait: Portrait
    faces: int
    notes: tuple[str, ...]


def find_portrait(
    path: Path, face: int | None = None, whole: bool = False, size: int | None = None, background: str | None = None
) -> FoundPortrait:
    """Find the chosen face of a photo; the result is cached.

    Args:
        path: the photo.
        face: which face, counted from the left beginning at 1; the largest by default.
        whole: the video will show the whole photo, scaled to a size that players support.
        size: side of the drawn face square in pixels; 512 by default.
        background: colour behind a transparent photo, white by default.

    Raises:
        BadInput: the photo cannot be read, or does not show this face.
    """
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise BadInput("The photo is no longer here: choose it again.") from error
    return _find_portrait(path, changed, face, whole, size or STUDIO_FACE_SIZE, background)


@lru_cache(maxsize=8)
def _find_portrait(
    path: Path, changed: int, face: int | None, whole: bool, size: int, background: str | None
) -> FoundPortrait:
    image = read_image(path, parse_colour(background) if background else WHITE_BACKGROUND)
    faces = find_faces(image)
    shown = Photo.for_video(image) if whole else image
    portrait = Portrait.from_image(shown, size, path.name, face)
    notes, count = [], len(faces)
    if count > 1:
        which = "the largest one speaks" if face is None else f"number {face} from the left speaks"
        notes.append(f"The photo shows {count} faces: {which}. Choose another one under Face.")
    from_left = sorted(faces, key=lambda candidate: float(candidate[0][:, 0].mean()))
    height = face_extent((faces[0] if face is None else from_left[face - 1])[0])
    if height < _SMALL_PX:
        notes.append(f"The face is only {height:.0f} px high and will be soft: a closer photo looks better.")
    notes += portrait_notes(portrait.crop, portrait.landmarks, "the photo")
    return FoundPortrait(portrait, count, tuple(notes))


def picture_of_photo(path: Path, face: int | None, whole: bool) -> bytes:
    """Return a JPEG of what the video will show: the whole photo, or the face square.

    Raises:
        BadInput: see ``find_portrait``.
    """
    portrait = find_portrait(path, face, whole).portrait
    return _jpeg(portrait.image if whole else portrait.crop)


def picture_of_video(path: Path) -> bytes:
    """Return a JPEG of the first frame of a video.

    Raises:
        BadInput: the video cannot be read.
    """
    from flowportrait.media.video import iter_frames

    for frame in iter_frames(path):
        return _jpeg(frame)
    raise BadInput(f"{path.name} has no pictures: choose a video.")


def _jpeg(image: np.ndarray) -> bytes:
    scale = min(1.0, _PICTURE_PX / max(image.shape[:2]))
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    coded, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    assert coded
    return data.tobytes()
