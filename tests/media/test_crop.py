"""A face is found, cut out and put back where it was."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation
from skimage import data

from flowportrait.errors import BadInput
from flowportrait.media import portrait as portrait_module
from flowportrait.media.crop import (
    FramePaster,
    apply_affine,
    crop_transform,
    feather_mask,
    largest_photo_square,
    paste_back,
)
from flowportrait.media.faces import face_yaw
from flowportrait.media.image import read_image
from flowportrait.media.occlusion import is_mouth_covered
from flowportrait.media.portrait import Portrait


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
def test_the_crop_always_holds_the_whole_face(x: float, y: float, face: float, shape: tuple[int, int]) -> None:
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
    weight = feather_mask(100, (True, False, True, True))
    assert weight[50, 50] == 1
    assert weight[:, 0].max() == 0
    assert weight[0, 50] == 1
    assert weight[-1].max() == 0


@lru_cache
def two_faces() -> np.ndarray:
    """The astronaut small on the left and large on the right."""
    photo = data.astronaut()
    two = np.full((512, 900, 3), 120, np.uint8)
    two[100:460, 5:365] = cv2.resize(photo, (360, 360), interpolation=cv2.INTER_AREA)
    two[:, 385:897] = photo
    return two


@pytest.mark.parametrize(("face", "low", "high"), [(1, 0, 365), (2, 385, 900)])
def test_the_nth_face_from_the_left_is_taken_when_asked_for(face: int, low: int, high: int) -> None:
    portrait = Portrait.from_image(two_faces(), face=face)
    centre = apply_affine(cv2.invertAffineTransform(portrait.to_crop), portrait.landmarks)[:, 0].mean()
    assert low < centre < high


@pytest.mark.parametrize("face", [0, 3])
def test_a_face_that_is_not_there_is_bad_input(face: int) -> None:
    with pytest.raises(BadInput, match=f"no face number {face}"):
        Portrait.from_image(two_faces(), face=face)


@given(st.floats(-80, 80), st.floats(-20, 20))
@settings(max_examples=30, deadline=None)
def test_the_yaw_of_a_turned_face_is_read_from_its_eyes(angle: float, roll: float) -> None:
    level = astronaut().landmarks.copy()
    level = level @ Rotation.from_euler("y", face_yaw(level), degrees=True).as_matrix().T
    turned_then_rolled = Rotation.from_euler("yz", [-angle, roll], degrees=True).as_matrix()
    assert face_yaw(level @ turned_then_rolled.T) == pytest.approx(angle, abs=1)
    # A head that is tilted before it turns shows a little less of the turn: its eye line is no longer level.
    tilted_then_turned = Rotation.from_euler("zy", [roll, -angle], degrees=True).as_matrix()
    assert face_yaw(level @ tilted_then_turned.T) == pytest.approx(angle, abs=12 if abs(angle) < 60 else 20)


def found_as(monkeypatch: pytest.MonkeyPatch, landmarks: np.ndarray) -> None:
    monkeypatch.setattr(portrait_module, "find_faces", lambda _: [(landmarks.astype(np.float32), np.zeros(52))])


def test_a_profile_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = Rotation.from_euler("y", 70, degrees=True).as_matrix()
    found_as(monkeypatch, (astronaut().landmarks - 200) @ turn.T + 200)
    with pytest.raises(BadInput, match="degrees away: give a photo that shows both eyes"):
        Portrait.from_image(data.astronaut(), name="profile.jpg")


@pytest.mark.parametrize("quarters", [1, 3])
def test_a_photo_that_lies_on_its_side_is_refused_in_one_sentence(
    quarters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sideways = np.ascontiguousarray(np.rot90(data.astronaut(), quarters))
    with pytest.raises(BadInput, match=r"in me\.jpg lies on its side, by \d+ degrees: rotate the photo upright"):
        Portrait.from_image(sideways, name="me.jpg")
    monkeypatch.setattr(portrait_module, "find_faces", lambda _: [])
    with pytest.raises(BadInput, match="but one would if it were turned: rotate the photo upright"):
        Portrait.from_image(sideways)


def test_a_face_of_fifty_pixels_is_taken_with_a_warning_and_one_of_ten_is_refused() -> None:
    photo = cv2.resize(data.astronaut(), (200, 200), interpolation=cv2.INTER_AREA)
    with pytest.warns(UserWarning, match="will be soft"):
        assert Portrait.from_image(photo).crop.shape == (512, 512, 3)
    with pytest.raises(BadInput, match=r"No face found|only \d+ px"):
        Portrait.from_image(cv2.resize(photo, (40, 40), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize("colour", [(170, 200, 230), (25, 25, 30)])
def test_a_mask_over_the_mouth_is_noticed_and_a_smile_is_none(colour: tuple[int, int, int]) -> None:
    crop, points = astronaut().crop.copy(), astronaut().landmarks
    assert not is_mouth_covered(crop, points)
    around = [234, 132, 58, 172, 136, 150, 176, 152, 400, 379, 365, 397, 288, 361, 454, 4]
    cv2.fillConvexPoly(crop, cv2.convexHull(np.round(points[around, :2]).astype(np.int32)), colour)
    assert is_mouth_covered(cv2.GaussianBlur(crop, (0, 0), 2), points)


@pytest.mark.parametrize("side", [300, 1100, 1900])
def test_large_photos_are_drawn_larger_so_that_pasting_back_enlarges_little(side: int) -> None:
    photo = cv2.resize(data.astronaut(), (side, side), interpolation=cv2.INTER_CUBIC)
    portrait = Portrait.from_image(photo, size=None)
    enlarged = 1 / np.sqrt(np.linalg.det(portrait.to_crop[:, :2]))
    assert portrait.crop.shape[0] in (512, 768, 1024)
    assert enlarged < 1.5 or portrait.crop.shape[0] == 1024
    assert enlarged > 0.75 or portrait.crop.shape[0] == 512


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((20, 30, 3), value, np.uint8)) for value in (10, 200)]
    for suffix in ("gif", "webp", "png"):
        path = tmp_path / f"moving.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=40, lossless=True)
        image = read_image(path)
        assert image.shape == (20, 30, 3)
        assert abs(int(image.mean()) - 10) < 4


@given(top=st.integers(0, 60), left=st.integers(0, 70), bottom=st.integers(230, 512), right=st.integers(300, 512))
@settings(max_examples=20, deadline=None)
def test_the_square_that_is_shown_alone_is_photo_from_edge_to_edge_and_has_the_whole_face(
    top: int, left: int, bottom: int, right: int
) -> None:
    photo = data.astronaut()[top:bottom, left:right]
    points = whole_astronaut_landmarks() - [left, top, 0]
    to_crop = crop_transform(points, photo.shape[:2], 512)
    face = apply_affine(to_crop, points)
    x, y, side = largest_photo_square(to_crop, photo.shape, face, 512)
    assert 0 <= x <= 512 - side
    assert 0 <= y <= 512 - side
    filled = cv2.warpAffine(np.ones(photo.shape[:2], np.float32), to_crop, (512, 512), flags=cv2.INTER_NEAREST)
    if side > np.ceil(np.ptp(face[:, :2], axis=0).max()):
        assert filled[y : y + side, x : x + side].min() == 1
        rows, columns = np.flatnonzero(filled.any(1)), np.flatnonzero(filled.any(0))
        assert side >= min(len(rows), len(columns)) - 1, "a larger square was to be had"
    inside = (face[:, :2] >= [x - 1, y - 1]) & (face[:, :2] <= [x + side + 1, y + side + 1])
    within_photo = (points[:, :2] >= 0) & (points[:, :2] < [photo.shape[1], photo.shape[0]])
    assert inside[within_photo].all()


def test_a_photo_with_room_around_the_face_is_shown_as_it_was_cut() -> None:
    portrait = astronaut()
    assert largest_photo_square(portrait.to_crop, portrait.image.shape, portrait.landmarks, 512) == (0, 0, 512)


@lru_cache
def whole_astronaut_landmarks() -> np.ndarray:
    return apply_affine(cv2.invertAffineTransform(astronaut().to_crop), astronaut().landmarks)


@pytest.mark.parametrize(
    ("scale", "left", "top"), [(1.25, 0.125, 0.125), (2.43, 13.37, 77.71), (1.07, 3.3, 9.2), (1.25, 0, 0)]
)
def test_an_enlarged_frame_is_pasted_where_an_affine_map_puts_it(scale: float, left: float, top: float) -> None:
    size = 256
    frame = cv2.resize(data.astronaut()[:300, 80:380], (size, size), interpolation=cv2.INTER_AREA)
    to_crop = np.array([[1 / scale, 0, -left / scale], [0, 1 / scale, -top / scale]])
    photo = np.zeros((int(top + scale * size) + 9, int(left + scale * size) + 9, 3), np.uint8)
    inner = np.s_[int(top) + 40 : int(top + scale * size) - 40, int(left) + 40 : int(left + scale * size) - 40]
    matrix = cv2.invertAffineTransform(to_crop)
    reference = cv2.warpAffine(frame, matrix, photo.shape[1::-1], flags=cv2.INTER_CUBIC)[inner].astype(float)

    def psnr(pasted: np.ndarray) -> float:
        return float(10 * np.log10(255**2 / (np.square(pasted[inner] - reference).mean() + 1e-9)))

    assert psnr(FramePaster(photo, to_crop, size)(frame)) > 55
    # The bound can fail: a tenth of a pixel is seen.
    assert psnr(FramePaster(photo, to_crop + np.array([[0, 0, 0.1], [0, 0, 0]]), size)(frame)) < 55


def test_only_the_border_of_a_mask_is_blended_and_nothing_of_it_is_left_out() -> None:
    size, rng = 128, np.random.default_rng(0)
    photo, frame = (rng.integers(0, 256, (300, 300, 3), np.uint8) for _ in range(2))
    frame = frame[:size, :size]
    to_crop, mask = np.array([[1.0, 0, -50], [0, 1.0, -60]]), np.zeros((size, size), np.float32)
    cv2.circle(mask, (70, 60), 40, 1.0, -1)
    mask = cv2.GaussianBlur(mask, (0, 0), 4)
    pasted = FramePaster(photo, to_crop, size, mask)(frame).astype(float)
    expected = photo.astype(float)
    expected[60 : 60 + size, 50 : 50 + size] += mask[..., None] * (frame - expected[60 : 60 + size, 50 : 50 + size])
    assert np.abs(pasted - expected).max() <= 1
