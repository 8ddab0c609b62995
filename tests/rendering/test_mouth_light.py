"""Teeth are as light as the light, not as the skin."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from skimage import data

from flowportrait.media.portrait import Portrait
from flowportrait.rendering.face_regions import EYES, FACE_OVAL, INNER_LOWER, INNER_UPPER, opening_outline, outline_mask
from flowportrait.rendering.mouth import Mouth, MouthLight, MouthPalette, estimate_light, estimate_teeth_factor
from flowportrait.rendering.mouth_geometry import skin_colour


@lru_cache
def astronaut() -> Portrait:
    return Portrait.from_image(data.astronaut())


def darker(picture: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    return np.round(picture * (1 - 0.6 * share)).astype(np.uint8)


def dark_skinned() -> np.ndarray:
    """Her photo with skin of half the brightness, and eyes as they are."""
    points = astronaut().landmarks[:, :2].astype(np.float64)
    face = outline_mask((512, 512), points[FACE_OVAL])
    for upper, lower, _ in EYES:
        face -= outline_mask((512, 512), opening_outline(points[upper], points[lower]))
    return darker(astronaut().crop, face.clip(0)[..., None])


def lit(picture: np.ndarray) -> float:
    return estimate_light(picture, astronaut().landmarks, skin_colour(picture, astronaut().landmarks)).teeth


def test_teeth_do_not_darken_with_the_skin() -> None:
    assert lit(dark_skinned()) > 1.4 * lit(astronaut().crop)


def test_teeth_darken_with_the_light() -> None:
    assert lit(darker(astronaut().crop, 1.0)) == pytest.approx(lit(astronaut().crop), abs=0.03)


def test_a_video_tells_how_light_its_teeth_are() -> None:
    points, crop = astronaut().landmarks.astype(np.float64), astronaut().crop
    points[INNER_LOWER[1:-1], 1] += 0.1 * np.linalg.norm(points[33] - points[263])
    mask = outline_mask((512, 512), opening_outline(points[INNER_UPPER, :2], points[INNER_LOWER, :2]), 1.0)[..., None]
    skin = skin_colour(crop, points)

    def shown(colour: float) -> float | None:
        frame = np.round(crop + mask * (colour - crop)).astype(np.uint8)
        return estimate_teeth_factor([frame] * 4, np.stack([points] * 4), skin)

    light, dim = shown(250.0), shown(150.0)
    assert light is not None
    assert dim is not None
    assert light > dim
    assert estimate_teeth_factor([crop] * 2, np.stack([points] * 2), skin) is None


def test_only_teeth_get_lighter_not_the_cavity() -> None:
    ratios, places = np.full((1, 9), 0.4, np.float32), np.array([[0.0, 0.05, 0.0, 0.05, 0.05]], np.float32)
    skin = np.array([150.0, 110.0, 90.0])
    plain, light = (
        MouthPalette(skin, MouthLight(teeth, np.ones(3))).colours(ratios, places)[0] for teeth in (1.0, 1.5)
    )
    np.testing.assert_allclose(light[:3], plain[:3])
    assert (light[3:] > 1.2 * plain[3:]).all()


def test_a_yellowed_picture_has_a_yellow_white_and_a_grey_one_none() -> None:
    crop, points = astronaut().crop, astronaut().landmarks
    yellow = np.round(crop * np.array([1.0, 0.9, 0.5])).astype(np.uint8)
    plain, warm = (estimate_light(picture, points, skin_colour(picture, points)).hue for picture in (crop, yellow))
    assert warm[2] < 0.9 * plain[2]
    grey = np.repeat(crop.mean(2, keepdims=True), 3, 2).astype(np.uint8)
    np.testing.assert_allclose(estimate_light(grey, points, skin_colour(grey, points)).hue, 1.0, atol=1e-6)


def half_closed(picture: np.ndarray) -> np.ndarray:
    """Mean colour ``[3]`` between lips that have come down to a third of the photo's opening."""
    points = astronaut().landmarks.astype(np.float64)
    for upper, lower in zip(INNER_UPPER, INNER_LOWER, strict=True):
        points[lower] += 0.67 * (points[upper] - points[lower])
    frame = picture.copy()
    Mouth(picture, astronaut().landmarks).draw(frame, points)
    inside = outline_mask(frame.shape[:2], opening_outline(points[INNER_UPPER, :2], points[INNER_LOWER, :2])) > 0.9
    return frame[inside].mean(0)


def test_teeth_behind_nearly_closed_lips_lie_in_red_light() -> None:
    picture, points = astronaut().crop, astronaut().landmarks[:, :2]
    smile = picture[outline_mask((512, 512), opening_outline(points[INNER_UPPER], points[INNER_LOWER])) > 0.9].mean(0)
    shaded = half_closed(picture)
    assert shaded[0] / shaded[2] > 1.2 * smile[0] / smile[2]
    grey = np.repeat(picture.mean(2, keepdims=True), 3, 2).astype(np.uint8)
    assert np.ptp(half_closed(grey)) < 2
