"""What a person hides is continued from around, and the matte holds hair but nothing of the wall."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowportrait.rendering.inpainting import inpaint_band
from flowportrait.rendering.layers import Backdrop, still_background
from flowportrait.rendering.matting import refine_matte

SIZE = 256
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE].astype(np.float32)
AWAY = np.hypot(COLUMNS - SIZE / 2, ROWS - SIZE / 2)
HEAD = AWAY < 70
DEPTH = 24.0
NEAR = HEAD & (AWAY > 70 - 0.6 * DEPTH)


def striped(period: float, angle: float) -> np.ndarray:
    """Return soft stripes ``[256, 256, 3]`` uint8 of two colours."""
    phase = (COLUMNS * np.cos(angle) + ROWS * np.sin(angle)) * (2 * np.pi / period)
    share = (0.5 + 1.5 * np.sin(phase)).clip(0, 1)[..., None]
    return np.round(share * [210, 190, 150] + (1 - share) * [40, 60, 110]).astype(np.uint8)


def with_head(wall: np.ndarray, colour: tuple[int, int, int] = (120, 70, 50)) -> np.ndarray:
    return np.where(HEAD[..., None], np.array(colour, np.uint8), wall)


@pytest.mark.parametrize(("period", "angle"), [(16, 0.0), (24, np.pi / 2), (30, 0.5), (20, 2.0)])
def test_stripes_continue_with_their_period_and_phase(period: float, angle: float) -> None:
    wall = striped(period, angle)
    filled = inpaint_band(with_head(wall), HEAD, DEPTH).astype(float)
    error = np.abs(filled - wall)[NEAR].mean()
    flat = np.abs(wall[NEAR].mean(0) - wall[NEAR]).mean()
    shifted = np.abs(striped(period, angle).astype(float) - np.roll(wall, round(period / 2), (0, 1)))[NEAR].mean()
    assert flat > 40
    assert shifted > 20, "another phase would be noticed"
    assert error < 0.1 * flat


@settings(max_examples=4, deadline=None)
@given(colour=st.tuples(*[st.integers(0, 255)] * 3))
def test_a_plain_wall_stays_plain(colour: tuple[int, int, int]) -> None:
    wall = np.full((SIZE, SIZE, 3), colour, np.uint8)
    change = np.abs(inpaint_band(with_head(wall, (9, 200, 30)), HEAD, DEPTH).astype(int) - wall)
    assert change[NEAR].max() <= 1
    assert change.max() <= 8, "deep behind the head the smooth filling is a little inexact"


def test_shading_of_a_wall_goes_on_without_a_step() -> None:
    wall = np.repeat((60 + 0.5 * COLUMNS)[..., None], 3, 2).astype(np.uint8)
    filled = inpaint_band(with_head(wall), HEAD, DEPTH).astype(int)
    assert np.abs(filled - wall)[NEAR].mean() < 8
    ring = (AWAY > 68) & (AWAY < 72)
    assert np.abs(np.diff(filled[..., 0], axis=1))[ring[:, 1:]].max() < 10


@pytest.mark.parametrize("size", [96, 256, 768])
def test_what_is_visible_is_not_touched_at_any_size(size: int) -> None:
    wall = cv2.resize(striped(20, 0.3), (size, size))
    hidden = cv2.resize(HEAD.astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST)
    filled = inpaint_band(wall, hidden, 0.08 * size)
    assert filled.shape == wall.shape
    assert filled.dtype == np.uint8
    assert np.array_equal(filled[hidden == 0], wall[hidden == 0])


def test_the_same_photo_gives_the_same_background() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    assert np.array_equal(inpaint_band(noise, HEAD, DEPTH), inpaint_band(noise, HEAD, DEPTH))


@pytest.mark.parametrize("visible", [0, 2])
def test_a_person_who_fills_the_picture_leaves_it_as_it_is_or_smooth(visible: int) -> None:
    picture = striped(20, 0.3)
    hidden = np.ones((SIZE, SIZE), np.uint8)
    hidden[:, :visible] = 0
    filled = inpaint_band(picture, hidden, DEPTH)
    assert np.isfinite(filled.astype(float)).all()
    assert np.array_equal(filled[hidden == 0], picture[hidden == 0])


def test_a_portrait_of_512_px_is_filled_in_seconds() -> None:
    wall = cv2.resize(striped(20, 0.3), (512, 512))
    hidden = cv2.resize(HEAD.astype(np.uint8), (512, 512), interpolation=cv2.INTER_NEAREST)
    start = time.process_time()
    inpaint_band(wall, hidden, 41)
    assert time.process_time() - start < 5, "it takes about one second of one core"


@pytest.mark.parametrize("colour", [(60, 40, 30), (235, 225, 215)])
def test_a_strand_of_hair_that_the_mask_misses_is_found_before_a_plain_wall(colour: tuple[int, int, int]) -> None:
    picture = with_head(np.full((SIZE, SIZE, 3), 150, np.uint8), colour)
    strand = (np.abs(ROWS - 128) < 2) & (COLUMNS > 190) & (COLUMNS < 204)
    picture[strand] = colour
    matte = refine_matte(picture, HEAD)
    assert matte[strand].mean() > 0.6
    around = (np.abs(ROWS - 128) > 12) & (np.abs(ROWS - 128) < 30) & (AWAY > 74)
    assert matte[around].max() == 0, "and nothing beside it"


def test_wall_that_a_loose_mask_takes_is_let_go() -> None:
    picture = with_head(np.full((SIZE, SIZE, 3), 190, np.uint8))
    matte = refine_matte(picture, AWAY < 72)
    assert matte[AWAY < 66].min() > 0.9
    assert matte[AWAY > 74].max() < 0.1


def test_stripes_as_dark_as_the_hair_are_no_hair() -> None:
    wall = np.where(COLUMNS[..., None] % 24 < 8, (70, 45, 35), (225, 220, 210)).astype(np.uint8)
    matte = refine_matte(with_head(wall, (70, 45, 35)), HEAD)
    beyond = (AWAY > 70 + 5) & (AWAY < 70 + 12)
    assert matte[beyond].mean() < 0.05
    assert matte[HEAD & (AWAY < 66)].min() > 0.9


def test_stripes_that_a_moving_head_uncovers_are_the_walls() -> None:
    wall = striped(24, 0.0)
    picture = with_head(wall)
    layers = Backdrop(picture, refine_matte(picture, HEAD))
    moved = layers.at(np.dstack([COLUMNS + 10, ROWS]))
    uncovered = (np.hypot(COLUMNS - SIZE / 2, ROWS - SIZE / 2) < 70) & (
        np.hypot(COLUMNS + 10 - SIZE / 2, ROWS - SIZE / 2) > 75
    )
    error = np.abs(moved.astype(float) - wall)[uncovered].mean()
    assert error < 0.35 * np.abs(wall[uncovered].mean(0) - wall[uncovered]).mean()


def test_where_nobody_is_the_background_is_the_photo() -> None:
    picture = striped(20, 1.0)
    matte = refine_matte(picture, HEAD)
    assert np.array_equal(still_background(picture, matte)[matte == 0], picture[matte == 0])
