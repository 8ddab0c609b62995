"""The person moves, what is behind stays."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from flowportrait.media.portrait import Portrait
from flowportrait.rendering.face_regions import FACE_OVAL, head_weight, person_matte, segment_person
from flowportrait.rendering.layers import Backdrop
from flowportrait.rendering.mesh import N_FACE, HeadMesh
from flowportrait.rendering.renderer import Renderer

SIZE = 128
HERE = np.dstack(np.meshgrid(*[np.arange(SIZE, dtype=np.float32)] * 2))


@lru_cache
def astronaut() -> Portrait:
    return Portrait.from_image(data.astronaut())


def disc(radius: float = 30) -> np.ndarray:
    """A soft share of a round person in the middle."""
    away = np.hypot(*(HERE - SIZE / 2).transpose(2, 0, 1))
    return np.clip((radius - away) / 3 + 0.5, 0, 1).astype(np.float32)


def stripes() -> np.ndarray:
    """A grey disc before black and white stripes."""
    wall = np.where(HERE[..., :1] % 16 < 8, 40, 220) * np.ones(3)
    return np.round(disc()[..., None] * 130 + (1 - disc()[..., None]) * wall).astype(np.uint8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), radius=st.floats(0, 90))
def test_at_rest_the_frame_is_the_photo_whatever_is_taken_for_the_person(seed: int, radius: float) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (SIZE // 4, SIZE // 4, 3), np.uint8)
    picture = cv2.resize(noise, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    frame = Backdrop(picture, disc(radius)).at(HERE)
    assert np.abs(frame.astype(int) - picture).max() <= 1


@pytest.mark.parametrize("shift", [-9, 6])
def test_stripes_behind_a_moving_disc_neither_bend_nor_follow(shift: int) -> None:
    picture = stripes()
    frame = Backdrop(picture, disc()).at(HERE - np.float32([shift, 0]))
    untouched = (disc() == 0) & (np.roll(disc(), shift, 1) == 0)
    assert np.array_equal(frame[untouched], picture[untouched])
    covered = np.roll(disc(), shift, 1) == 1
    assert np.abs(frame[covered].astype(int) - 130).max() <= 2
    uncovered = (disc() == 1) & (np.roll(disc(), shift, 1) == 0)
    assert np.abs(frame[uncovered].astype(int) - 130).mean() > 40, "the disc is not left behind"


def test_hair_that_is_darker_than_the_wall_stays_as_dark_where_it_moves() -> None:
    wall = np.full((SIZE, SIZE, 3), 230, np.uint8)
    wall[SIZE // 2, 70:98] = 20
    thin = np.where(np.abs(HERE[..., 1] - SIZE // 2) < 4, np.float32(0.4), np.float32(0)) * (HERE[..., 0] > 60)
    lifted = Backdrop(wall, thin).at(HERE + np.float32([0, 3]))
    assert lifted[SIZE // 2 - 3, 75:90].max() < 40
    assert lifted[SIZE // 2, 75:90].min() > 200, "its place is wall again"


def test_the_astronaut_is_found_with_her_hair_and_without_the_flag_beside_her() -> None:
    mask = segment_person(astronaut().crop, astronaut().landmarks)
    points = astronaut().landmarks[:, :2] / 2
    face = cv2.fillConvexPoly(np.zeros_like(mask), cv2.convexHull(np.round(points[FACE_OVAL]).astype(np.int32)), 1)
    assert mask[face > 0].all()
    top = int(points[10, 1] - 0.12 * np.ptp(points[:, 1]))
    assert mask[top, int(points[10, 0])], "hair above the forehead is hers"
    assert not mask[:100, :25].any()
    assert not mask[:100, -15:].any()


def test_of_two_people_only_the_one_with_this_face_is_taken() -> None:
    half = cv2.resize(astronaut().crop, (256, 256), interpolation=cv2.INTER_AREA)
    pair = np.full((512, 512, 3), 200, np.uint8)
    pair[200:456, :256], pair[200:456, 256:] = half, half[:, ::-1]
    landmarks = astronaut().landmarks / 2 + np.array([0, 200, 0], np.float32)
    above_the_chin = segment_person(pair, landmarks)[: int(landmarks[152, 1] / 2)]
    assert above_the_chin[:, :115].any()
    assert not above_the_chin[:, 150:].any()


def test_a_face_the_network_does_not_see_still_gets_a_head() -> None:
    landmarks = astronaut().landmarks
    mask = segment_person(np.full((512, 512, 3), 127, np.uint8), landmarks)
    extent = np.ptp(landmarks[FACE_OVAL, :2], axis=0) / 2
    assert 0.9 * np.pi / 4 * extent.prod() < mask.sum() < 4 * extent.prod()


def test_what_the_matte_shows_moves_as_one_with_the_head_above_the_neck() -> None:
    mask = segment_person(astronaut().crop, astronaut().landmarks)
    share = cv2.resize(person_matte(mask, 512), (160, 160), interpolation=cv2.INTER_AREA)
    weight = head_weight(mask, astronaut().landmarks, 512, free_top=True)
    above = slice(0, int(astronaut().landmarks[10, 1] * 160 / 512))
    inner = np.s_[above, 16:-16]
    assert weight[inner][share[inner] > 0.02].min() > 0.95


def test_a_head_that_leans_leaves_the_flag_behind_it_straight() -> None:
    portrait = astronaut()
    renderer = Renderer(portrait, retouch=False)
    lean = portrait.landmarks + np.array([14, 0, 0], np.float32)
    frame = renderer.draw(lean).astype(int)
    share = person_matte(segment_person(portrait.crop, portrait.landmarks), 512)
    moved = cv2.warpAffine(share, np.float32([[1, 0, 14], [0, 1, 0]]), (512, 512))
    free = (cv2.dilate(share, np.ones((9, 9))) == 0) & (cv2.dilate(moved, np.ones((9, 9))) == 0)
    assert free[:256].mean() > 0.2
    assert np.abs(frame - portrait.crop)[:256][free[:256]].max() <= 1


def test_hair_under_the_pictures_top_comes_down_whole_and_hair_that_it_cuts_off_stays() -> None:
    portrait = astronaut()
    mask = segment_person(portrait.crop, portrait.landmarks)
    weight = head_weight(mask, portrait.landmarks, 512, free_top=True)
    sunk = portrait.landmarks + np.array([0, 12, 0], np.float32)
    under, through = (
        HeadMesh(portrait.crop, portrait.landmarks, weight, cut_off=np.full(256, cut)) for cut in (False, True)
    )
    above_the_face = (np.abs(under.source[N_FACE:] - [portrait.landmarks[10, 0], 16]) < 20).all(1)
    down = [(mesh(sunk)[N_FACE:, 1] - mesh.source[N_FACE:, 1])[above_the_face] for mesh in (under, through)]
    assert np.abs(down[0] - 12).max() < 1
    assert down[1].min() < 1
    assert down[1].mean() < 8
