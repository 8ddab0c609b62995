"""A portrait is neutralised: open mouths close with lips of their own height, blinks close both eyes of every face."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import numpy as np
import pytest
import torch

from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.rendering.eyeball import complete_eyeball
from flowportrait.rendering.face_regions import EYES, INNER_LOWER, INNER_UPPER, OUTER_LOWER, OUTER_UPPER
from flowportrait.rendering.head_range import HeadRange
from flowportrait.rendering.lids import NARROW_OPENING, LidRange, lid_opening
from flowportrait.rendering.motion_basis import BLINK, HEAD, MOTION_DIM, MotionBasis, lip_pair_gaps
from flowportrait.rendering.neutral_portrait import portrait_identity
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.samples import portrait_path

LIPS = ((INNER_UPPER, OUTER_UPPER), (INNER_LOWER, OUTER_LOWER))
NAMES = ("astronaut", "beard", "hair-tied", "short-hair")


@lru_cache
def portrait(name: str) -> Portrait:
    return Portrait.from_image(read_image(portrait_path(name)))


@lru_cache
def codec(name: str) -> MotionCodec:
    return MotionCodec(portrait(name), retouch=False)


def photo_shape(person: Portrait) -> torch.Tensor:
    pose = portrait_identity(MotionBasis.load(), person).pose
    return pose.remove(torch.as_tensor(person.landmarks[None]))[0]


def with_eyes(name: str, right: float, left: float) -> Portrait:
    """The portrait with the opening of its eyes multiplied."""
    person = portrait(name)
    points = person.landmarks.copy()
    for (upper, lower, _), share in zip(EYES, (right, left), strict=True):
        middle = (points[upper] + points[lower]) / 2
        points[upper] = middle + share * (points[upper] - middle)
        points[lower] = middle + share * (points[lower] - middle)
    return dataclasses.replace(person, landmarks=points)


def laughing(name: str) -> Portrait:
    """The portrait with its mouth opened until its expression is as strong as that of a drawn face."""
    person, basis = portrait(name), MotionBasis.load()
    motion, identity = basis.encode(person.landmarks[None], person.blendshapes[None], smooth=False)
    jaw = torch.zeros(1, MOTION_DIM)
    jaw[0, 0] = 12.0 if float(lip_pair_gaps(basis.directions[0])[4]) > 0 else -12.0
    return dataclasses.replace(person, landmarks=basis.decode(motion + jaw, identity)[0].numpy())


def lid_range(person: Portrait) -> LidRange:
    basis = MotionBasis.load()
    return LidRange(basis, portrait_identity(basis, person), photo_shape(person))


def opening(person: Portrait, motion: torch.Tensor) -> torch.Tensor:
    """The opening of both eyes ``[T, 2]`` as they are drawn."""
    basis = MotionBasis.load()
    return lid_opening(basis.shape(lid_range(person)(motion), portrait_identity(basis, person).neutral))


def blink(right: float, left: float) -> torch.Tensor:
    motion = torch.zeros(1, MOTION_DIM)
    motion[0, BLINK] = torch.tensor([left, right])
    return motion


@pytest.mark.parametrize("name", NAMES)
def test_every_mouth_closes_at_rest_with_lips_of_its_own_height(name: str) -> None:
    person = laughing(name)
    basis, photo = MotionBasis.load(), photo_shape(person)
    assert lip_pair_gaps(photo)[4] > 0.15
    neutral = basis.shape(torch.zeros(1, MOTION_DIM), portrait_identity(basis, person).neutral)[0]
    assert lip_pair_gaps(neutral).abs().max() < 1e-5
    for inner, outer in LIPS:
        height, allowed = ((face[inner, 1] - face[outer, 1]).abs()[1:-1] for face in (neutral, photo))
        # Contact moves each lip by half a per cent of the eye distance.
        assert (height <= 1.25 * allowed + 0.011).all()


def test_a_strong_smile_is_an_expression_and_not_the_shape_of_the_face() -> None:
    person = laughing("astronaut")
    basis = MotionBasis.load()
    motion, encoded = basis.encode(person.landmarks[None], person.blendshapes[None], smooth=False)
    assert motion[0, :16].norm() > 9
    neutral = portrait_identity(basis, person).neutral
    corners = [61, 291]
    # What is left of the difference between photo and neutral face is not mixed back in.
    torch.testing.assert_close(neutral[corners], encoded.neutral[corners], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("right", "left"), [(1.0, 1.0), (0.5, 0.5), (1.0, 0.6), (1.4, 1.4)])
def test_the_deepest_blink_of_speech_shuts_both_eyes_of_every_face(right: float, left: float) -> None:
    person = with_eyes("short-hair", right, left)
    # Blink coefficients as the generator gives them, a fifth smaller on one side.
    assert opening(person, blink(4.0, 2.5)).abs().max() < 0.2 * opening(person, blink(0.6, 0.2)).min()


def test_both_eyes_blink_alike_but_a_wink_stays_one() -> None:
    person = portrait("short-hair")
    right, left = (opening(person, blink(2.0, 1.2))[0] / opening(person, blink(0.6, 0.2))[0]).tolist()
    assert 0.2 < right < 0.9
    assert right == pytest.approx(left, abs=1e-3)
    right, left = opening(person, blink(5.5, -1.5))[0].tolist()
    assert right < 0.25 * left


def test_between_blinks_eyes_are_as_open_as_in_the_photo() -> None:
    for share in (1.0, 1.3):
        person = with_eyes("short-hair", share, share)
        torch.testing.assert_close(
            opening(person, blink(0.6, 0.2))[0], lid_opening(photo_shape(person)), atol=2e-3, rtol=0.02
        )


def test_half_closed_eyes_are_opened_and_shut_ones_stay_shut() -> None:
    half = with_eyes("short-hair", 0.5, 0.5)
    before, after = lid_opening(photo_shape(half)), opening(half, blink(0.6, 0.2))[0]
    assert (after > before + 0.3 * (NARROW_OPENING - before)).all()
    assert (after < NARROW_OPENING).all()
    shut = with_eyes("short-hair", 0.1, 0.1)
    assert lid_range(shut).is_shut
    torch.testing.assert_close(opening(shut, blink(0.6, 0.2)), opening(shut, blink(4.0, 4.0)))


def test_one_eye_in_the_middle_of_a_wink_is_opened_like_the_other() -> None:
    right, left = opening(with_eyes("short-hair", 1.0, 0.3), blink(0.6, 0.2))[0]
    assert left >= 0.75 * right


@pytest.mark.parametrize("name", ["beard", "astronaut"])
def test_a_tracker_sees_the_drawn_lips_and_lids_shut(name: str) -> None:
    motion = torch.cat([blink(0.6, 0.2), blink(4.0, 2.5)])
    with FaceTracker(still=True, max_faces=1) as tracker:
        awake, asleep = (tracker.detect(frame)[0][0] for frame in codec(name).decode(motion))
    eyes = np.linalg.norm(awake[33, :2] - awake[263, :2])
    assert np.linalg.norm(awake[13, :2] - awake[14, :2]) < 0.03 * eyes
    for upper, lower, _ in EYES:
        opened, shut = (np.linalg.norm(points[upper[4], :2] - points[lower[4], :2]) for points in (awake, asleep))
        assert shut < 0.3 * opened


def test_a_hidden_iris_gets_the_colours_of_its_visible_part() -> None:
    ys, xs = np.mgrid[:81, :121]
    distance = np.hypot(xs - 60, ys - 40)
    eye = np.full((81, 121, 3), 230, np.uint8)
    eye[distance < 20] = (60, 90, 140)
    eye[distance < 8] = (15, 15, 15)
    skin = eye.copy()
    opening_mask = ((np.abs(ys - 40) < 10) & (np.abs(xs - 60) < 50)).astype(np.float32)
    skin[opening_mask == 0] = (200, 150, 130)
    drawn = complete_eyeball(skin, opening_mask, np.array([60.0, 40.0]), 20.0)
    hidden = (opening_mask == 0) & (distance < 17) & (distance > 12)
    assert np.abs(drawn[hidden] - (60, 90, 140)).mean() < 12
    assert np.abs(skin[hidden].astype(float) - (60, 90, 140)).mean() > 60
    np.testing.assert_array_equal(drawn[opening_mask == 1], skin[opening_mask == 1])


def test_a_frontal_head_turns_freely_and_a_half_profile_less() -> None:
    basis = MotionBasis.load()
    degrees = float(torch.rad2deg(basis.head_std[1]))
    motion = torch.zeros(2, MOTION_DIM)
    motion[:, HEAD.start + 1] = torch.tensor([20.0, -20.0]) / degrees
    frontal, points = np.zeros((478, 3)), {}
    for side in (1, -1):
        points[side] = frontal.copy()
        points[side][263] = (np.cos(np.radians(45)), 0, side * np.sin(np.radians(45)))
    frontal[263] = (1, 0, 0)
    assert HeadRange(basis, frontal)(motion) is motion
    for side in (1, -1):
        turns = HeadRange(basis, points[side])(motion)[:, HEAD.start + 1] * degrees * side
        forward, away = (turns[0], turns[1]) if side == 1 else (turns[1], turns[0])
        assert 5 < forward <= 11
        assert 3 < -away <= 7
    small = motion / 10
    torch.testing.assert_close(HeadRange(basis, points[1])(small), small)
