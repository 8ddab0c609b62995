"""A photo as the studio takes it: the portrait in it, and what its owner should know before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from flowportrait.errors import BadInput
from flowportrait.media.face import extent
from flowportrait.media.image import read_image
from flowportrait.media.occlusion import mouth_covered
from flowportrait.media.portrait import Portrait
from flowportrait.media.search import find_faces
from flowportrait.pipelines.inputs import read_photo

SIZE = 512
_SMALL_PX = 64.0
"""Height of a face in the photo under which it will look soft."""


@dataclass(frozen=True)
class FoundPortrait:
    """A portrait, how many faces its photo shows, and sentences for the page."""

    portrait: Portrait
    faces: int
    notes: tuple[str, ...]


def find_portrait(path: Path, face: int | None = None, whole: bool = False) -> FoundPortrait:
    """The chosen face of a photo (counted from the left beginning at 1; None: the largest); kept for the next call.

    whole: the photo will be shown as a whole, scaled down to what players take.

    Raises:
        BadInput: it cannot be read, or shows no such face.
    """
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise BadInput("The photo is no longer here: drop it on the left again.") from error
    return _find_portrait(path, changed, face, whole)


@lru_cache(maxsize=4)
def _find_portrait(path: Path, changed: int, face: int | None, whole: bool) -> FoundPortrait:
    image = read_image(path)
    faces = find_faces(image)
    portrait = Portrait.from_image(read_photo(path) if whole else image, SIZE, "the photo", face)
    notes, count = [], len(faces)
    if count > 1:
        which = "the largest one speaks" if face is None else f"number {face} from the left speaks"
        notes.append(f"The photo shows {count} faces: {which}. Choose another one under Face.")
    from_left = sorted(faces, key=lambda found: float(found[0][:, 0].mean()))
    height = extent((faces[0] if face is None else from_left[face - 1])[0])
    if height < _SMALL_PX:
        notes.append(f"The face is only {height:.0f} px high and will be soft: a closer photo looks better.")
    if mouth_covered(portrait.crop, portrait.landmarks):
        notes.append("The mouth seems to be covered: lips will be drawn over it.")
    return FoundPortrait(portrait, count, tuple(notes))
