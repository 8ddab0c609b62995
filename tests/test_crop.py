"""A face is found, cut out and put back where it was."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from flowportrait.errors import BadInput
from flowportrait.media.crop import feather, paste_back
from flowportrait.media.portrait import Portrait, apply_affine, crop_transform


@lru_cache
def astronaut() -> Portrait:
    return Portrait.from_image(data.astronaut())


def test_the_face_takes_about_half_of_the_crop() -> None:
    portrait = astronaut()
    assert portrait.crop.shape == (512, 512, 3)
    assert 0.4 < np.ptp(portrait.landmarks[:, 1]) / 512 < 0.67


def test_the_same_face_is_found_in_any_size_and_in_grey() -> None:
    photo = data.astronaut()
    here = apply_affine(cv2.invertAffineTransform(astronaut().to_crop), astronaut().landmarks)
    for scale in (0.4, 3.0):
        resized = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        portrait = Portrait.from_image(resized)
        there = apply_affine(cv2.invertAffineTransform(portrait.to_crop), portrait.landmarks) / scale
        assert np.abs(there - here)[:, :2].mean() < 3
    grey = cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    assert np.abs(Portrait.from_image(grey).landmarks - astronaut().landmarks)[:, :2].mean() < 8


def test_a_small_face_in_a_large_picture_is_found() -> None:
    wide = np.full((1600, 2400, 3), 120, np.uint8)
    wide[1000:1200, 300:500] = cv2.resize(data.astronaut(), (200, 200), interpolation=cv2.INTER_AREA)
    portrait = Portrait.from_image(wide)
    centre = apply_affine(cv2.invertAffineTransform(portrait.to_crop), portrait.landmarks)[:, :2].mean(0)
    assert 300 < centre[0] < 500
    assert 1000 < centre[1] < 1200


def test_of_several_faces_the_largest_is_taken_with_a_warning() -> None:
    photo = data.astronaut()
    two = np.full((512, 900, 3), 120, np.uint8)
    two[:, :512] = photo
    two[150:510, 535:895] = cv2.resize(photo, (360, 360), interpolation=cv2.INTER_AREA)
    with pytest.warns(UserWarning, match="2 faces"):
        portrait = Portrait.from_image(two)
    centre = apply_affine(cv2.invertAffineTransform(portrait.to_crop), portrait.landmarks)[:, 0].mean()
    assert centre < 512


@pytest.mark.parametrize("picture", ["coffee", "chelsea", "rocket"])
def test_a_picture_without_a_human_face_is_refused(picture: str) -> None:
    with pytest.raises(BadInput, match="No face found"):
        Portrait.from_image(getattr(data, picture)())


def test_an_unchanged_crop_pasted_back_leaves_the_photo_as_it_was() -> None:
    portrait = astronaut()
    result = paste_back(portrait.image, portrait.crop, portrait.to_crop)
    assert result.shape == portrait.image.shape
    assert np.abs(result.astype(int) - portrait.image).mean() < 1.0


def test_nothing_outside_the_crop_changes_and_no_border_shows() -> None:
    photo = np.full((400, 600, 3), 100, np.uint8)
    to_crop = np.array([[2.0, 0, -300.0], [0, 2.0, -200.0]])
    result = paste_back(photo, np.full((256, 256, 3), 140, np.uint8), to_crop).astype(int)
    assert (result[:99] == 100).all()
    assert (result[:, 280:] == 100).all()
    assert (result[160:168, 205:215] == 140).all()
    assert np.abs(np.diff(result[:, :, 0], axis=1)).max() <= 12


@given(
    x=st.floats(-50, 650),
    y=st.floats(-50, 450),
    face=st.floats(30, 600),
    shape=st.tuples(st.integers(100, 500), st.integers(100, 700)),
)
@settings(max_examples=40, deadline=None)
def test_the_crop_always_holds_the_whole_face(
    x: float, y: float, face: float, shape: tuple[int, int]
) -> None:
    landmarks = np.zeros((478, 3))
    landmarks[:, 0] = np.linspace(x, x + 0.8 * face, 478).clip(0, shape[1] - 1)
    landmarks[:, 1] = np.linspace(y, y + face, 478).clip(0, shape[0] - 1)
    if np.ptp(landmarks[:, :2], axis=0).max() < 24:
        return
    inside = apply_affine(crop_transform(landmarks, shape, 256), landmarks)[:, :2]
    assert inside.min() > -1
    assert inside.max() < 256
    assert np.ptp(inside, axis=0).max() < 0.7 * 256


def test_the_feather_is_zero_at_open_sides_only() -> None:
    weight = feather(100, (True, False, True, True))
    assert weight[50, 50] == 1
    assert weight[:, 0].max() == 0
    assert weight[0, 50] == 1
    assert weight[-1].max() == 0
