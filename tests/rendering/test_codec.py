"""Claims about motion: poses, lips, mirror, filters, and the shipped basis."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from flowportrait.rendering.motion_basis import (
    BLINK,
    EXPRESSION,
    GAZE,
    HEAD,
    LOWER_FACE,
    Identity,
    MotionBasis,
    Pose,
    close_lips,
    fit_pose,
    lip_pair_gaps,
    mirror_matrix,
    mirror_partners,
    pose_to_vector,
    vector_to_pose,
)
from flowportrait.rendering.motion_filters import MotionLowPass

BASIS = MotionBasis.load()


def pose(angles: tuple[float, float, float], shift: tuple[float, float] = (200.0, 250.0), scale: float = 90.0) -> Pose:
    rotation = torch.from_numpy(Rotation.from_euler("xyz", angles, degrees=True).as_matrix()).float()[None]
    return Pose(rotation, torch.tensor([[*shift, 0.0]]), torch.tensor([scale]))


def face() -> Identity:
    return Identity(close_lips(BASIS.canonical), pose((4.0, -6.0, 2.0)))


@settings(max_examples=25)
@given(st.tuples(*[st.floats(-25, 25)] * 3), st.floats(20, 400))
def test_the_pose_of_a_rigid_head_is_found_exactly(angles: tuple[float, float, float], scale: float) -> None:
    true = pose(angles, scale=scale)
    found = fit_pose(true.apply(BASIS.canonical[None]), BASIS.canonical)
    for got, want in zip(found, true, strict=True):
        assert torch.allclose(got, want, atol=1e-3 * scale)


def test_a_pose_survives_its_vector() -> None:
    base, moved = pose((0.0, 5.0, 0.0)), pose((3.0, -9.0, 4.0), (210.0, 244.0), 95.0)
    again = vector_to_pose(pose_to_vector(moved, base), base)
    assert torch.allclose(again.apply(BASIS.canonical[None]), moved.apply(BASIS.canonical[None]), atol=1e-2)


def test_rest_is_the_persons_own_closed_mouth() -> None:
    shape = BASIS.shape(torch.zeros(1, 30), close_lips(BASIS.canonical))
    assert torch.equal(lip_pair_gaps(shape), torch.zeros(1, 9))


@settings(max_examples=25)
@given(st.lists(st.floats(-4, 4), min_size=16, max_size=16))
def test_lips_never_cross(lower: list[float]) -> None:
    motion = torch.zeros(1, 30)
    motion[0, LOWER_FACE] = torch.tensor(lower)
    assert lip_pair_gaps(BASIS.shape(motion, close_lips(BASIS.canonical))).min() >= -1e-6


@pytest.mark.parametrize("part", [BLINK, GAZE, HEAD])
def test_eyes_and_head_leave_the_lips_alone(part: slice) -> None:
    motion = torch.zeros(1, 30)
    motion[0, part] = 2.0
    rest = close_lips(BASIS.canonical)
    assert torch.allclose(lip_pair_gaps(BASIS.shape(motion, rest)), torch.zeros(9), atol=1e-6)


def test_motion_is_read_back_from_the_landmarks_it_makes() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(40, 30, generator=generator).cumsum(0)
    motion = 0.5 * (steps - steps.mean(0)) / steps.std(0)
    motion[:, 0] -= 2.0  # an open mouth, where lip contact does not interfere
    person = face()
    landmarks = BASIS.decode(motion, person)
    pose_found = fit_pose(landmarks, BASIS.canonical)
    read = (pose_found.remove(landmarks) - person.neutral).flatten(1) @ BASIS.readout.T
    for number in (*range(6), *range(22, 24)):
        assert np.corrcoef(read[:, number], motion[:, number])[0, 1] > 0.9, number


def test_a_mirror_seen_in_a_mirror_is_no_mirror() -> None:
    order = mirror_partners(BASIS.canonical)
    assert torch.equal(order[order], torch.arange(478))
    motion = torch.randn(50, 30)
    twice = motion @ mirror_matrix(BASIS) @ mirror_matrix(BASIS)
    leading = [*range(4), *range(20, 30)]
    assert torch.allclose(twice[:, leading], motion[:, leading], atol=0.6)
    assert torch.allclose(twice[:, 20:], motion[:, 20:], atol=1e-5)


def test_the_filter_gives_the_same_streamed_and_whole_and_never_touches_lips() -> None:
    motion = torch.randn(2, 40, 30)
    calm = MotionLowPass()
    streamed = torch.cat([calm(part) for part in motion.split(4, dim=1)], 1)
    assert torch.allclose(streamed, MotionLowPass()(motion), atol=1e-6)
    kept = [*range(16), *range(20, 24)]
    assert torch.equal(streamed[..., kept], motion[..., kept])


def test_the_filter_passes_a_slow_nod_and_stops_a_tremor() -> None:
    time = torch.arange(200) / 25
    motion = torch.zeros(1, 200, 30)
    motion[0, :, HEAD.start] = torch.sin(2 * torch.pi * 0.5 * time)
    motion[0, :, HEAD.start + 1] = torch.sin(2 * torch.pi * 9.0 * time)
    calm = MotionLowPass()(motion)[0, 50:]
    assert calm[:, HEAD.start].std() > 0.95 * motion[0, 50:, HEAD.start].std()
    assert calm[:, HEAD.start + 1].std() < 0.1 * motion[0, 50:, HEAD.start + 1].std()
    assert torch.equal(calm[:, EXPRESSION][:, :16], motion[0, 50:, EXPRESSION][:, :16])


def test_a_head_that_wanders_off_is_held_and_one_that_does_not_is_left_alone() -> None:
    far = torch.zeros(1, 50, 30)
    far[..., HEAD] = 7.0
    held = MotionLowPass()(far)[..., HEAD]
    assert held.min() > 3
    assert held.max() <= 3.5
    assert torch.allclose(MotionLowPass()(far / 5), far / 5, atol=1e-5)
