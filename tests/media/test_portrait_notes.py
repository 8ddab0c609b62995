"""Photos as people have them: every face of a wide photo is found, and what limits a video is said in a sentence."""

from __future__ import annotations

import warnings

import cv2
import numpy as np
import pytest

from flowportrait.media.faces import face_extent, face_yaw
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait, find_faces
from flowportrait.media.portrait_notes import eye_opening, portrait_notes
from flowportrait.samples import portrait_path


def wide_photo(width: int, height: int, face: float, names: tuple[str, ...]) -> np.ndarray:
    """A photo with people side by side, whose faces are ``face`` px high."""
    rng = np.random.default_rng(0)
    picture = (120 + rng.normal(0, 6, (height, width, 3))).clip(0, 255).astype(np.uint8)
    for place, name in enumerate(names):
        person = read_image(portrait_path(name))
        scale = face / face_extent(find_faces(person)[0][0])
        person = cv2.resize(person, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[:height]
        left = width * (2 * place + 1) // (2 * len(names)) - person.shape[1] // 2
        picture[: len(person), left : left + person.shape[1]] = person
    return picture


def portrait() -> Portrait:
    return Portrait.from_image(read_image(portrait_path("short-hair")))


@pytest.mark.parametrize(("width", "height", "face"), [(1920, 1080, 60), (1920, 1080, 120), (2000, 600, 200)])
def test_both_people_in_a_wide_photo_are_found(width: int, height: int, face: float) -> None:
    found = find_faces(wide_photo(width, height, face, ("beard", "short-hair")))
    assert len(found) == 2
    left, right = sorted(float(points[:, 0].mean()) / width for points, _ in found)
    assert (left, right) == (pytest.approx(0.25, abs=0.06), pytest.approx(0.75, abs=0.06))


def test_an_ordinary_photo_needs_no_sentence() -> None:
    for name in ("astronaut", "beard", "hair-tied", "short-hair"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Portrait.from_image(read_image(portrait_path(name)))


def test_a_very_dark_photo_is_told_and_a_dark_skin_is_not() -> None:
    person = portrait()
    assert portrait_notes(person.crop, person.landmarks, "me.jpg") == []
    dark = (person.crop * 0.25).astype(np.uint8)
    (note,) = portrait_notes(dark, person.landmarks, "me.jpg")
    assert note.startswith("The face in me.jpg is very dark (")


@pytest.mark.parametrize(("share", "sentence"), [(0.5, "are half closed: they are opened"), (0.2, "are shut and stay")])
def test_eyes_that_are_not_open_are_told(share: float, sentence: str) -> None:
    person = portrait()
    points = person.landmarks.copy()
    for upper, lower in ((159, 145), (386, 374)):
        middle = (points[upper] + points[lower]) / 2
        points[upper], points[lower] = (middle + share * (points[lid] - middle) for lid in (upper, lower))
    assert eye_opening(points) == pytest.approx(share * eye_opening(person.landmarks), rel=0.05)
    assert any(sentence in note for note in portrait_notes(person.crop, points, "me.jpg"))


def test_a_half_profile_is_told_with_its_angle() -> None:
    person = portrait()
    points = person.landmarks.copy()
    points[263, 2] += (points[263, 0] - points[33, 0]) * np.tan(np.radians(45))
    yaw = abs(face_yaw(points))
    assert yaw > 35
    notes = portrait_notes(person.crop, points, "me.jpg")
    assert any(f"is turned {yaw:.0f} degrees aside" in note for note in notes)
