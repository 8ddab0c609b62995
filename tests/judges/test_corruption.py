"""Damage is what it says, as strong as it says, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowportrait.corruption import (
    CATALOGUE,
    CORRUPTIONS,
    HELD_OUT_MOTION_CORRUPTIONS,
    MOTION_CORRUPTIONS,
    Footage,
    MotionWindow,
    corrupt,
    corruptions,
)
from flowportrait.corruption.catalogue import CLIP_KINDS, KINDS
from flowportrait.corruption.clips import paste_square
from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLES_PER_FRAME
from flowportrait.rendering.motion_basis import BLINK, GAZE, LOWER_FACE

FRAMES, SIDE = 50, 96


def footage(frames: int = FRAMES) -> Footage:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    pictures = np.stack([np.stack([x + y, 2 * x, 200 - y], -1) + t % 50 for t in range(frames)])
    points = np.zeros((frames, 478, 3), np.float32)
    points[..., :2] = rng.uniform(30, 66, (478, 2))
    for corner, x in ((33, 36), (133, 44), (362, 52), (263, 60)):
        points[:, corner, :2] = x, 36
    points[..., :2] += 0.1 * np.arange(frames)[:, None, None]
    return Footage(
        pictures.astype(np.uint8),
        rng.normal(0, 0.1, frames * SAMPLES_PER_FRAME).astype(np.float32),
        points,
        rng.normal(size=(frames, 30)).astype(np.float32),
    )


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_strength_zero_is_the_clip_itself_and_more_is_not(name: str) -> None:
    clip = footage()
    same, worse = corrupt(clip, name, 0.0), corrupt(clip, name, CORRUPTIONS[name].strengths[1])
    for track in ("frames", "audio", "landmarks", "motion"):
        np.testing.assert_allclose(getattr(same, track), getattr(clip, track), atol=1e-3)
        assert getattr(worse, track).shape == getattr(clip, track).shape
        assert getattr(worse, track).dtype == getattr(clip, track).dtype
    pictures_moved = not np.array_equal(worse.frames, clip.frames)
    assert pictures_moved == (name != "offset")
    assert (not np.array_equal(worse.audio, clip.audio)) == (name == "offset")
    np.testing.assert_array_equal(clip.frames, footage().frames)


@given(shift=st.integers(-20, 20))
@settings(max_examples=15)
def test_late_sound_is_late_by_exactly_so_many_frames(shift: int) -> None:
    clip = footage(30)
    late, samples = corrupt(clip, "offset", shift).audio, shift * SAMPLES_PER_FRAME
    assert len(late) == len(clip.audio)
    heard = late[max(samples, 0) : len(late) + min(samples, 0)]
    assert len(heard) == (30 - abs(shift)) * SAMPLES_PER_FRAME > 0
    np.testing.assert_array_equal(heard, clip.audio[max(-samples, 0) : len(late) - max(samples, 0)])
    gap = late[:samples] if shift >= 0 else late[samples:]
    assert not gap.any(), "the gap is silent"


@given(frames=st.floats(0, 12), seed=st.integers(0, 99))
@settings(max_examples=15)
def test_warped_time_never_runs_back_and_strays_no_further_than_asked(frames: float, seed: int) -> None:
    clip = Footage(None, motion=np.arange(80.0)[:, None])
    warped = CORRUPTIONS["time-warp"].damage(clip, frames, seed).motion[:, 0]
    assert (np.diff(warped) >= -1e-9).all()
    assert np.abs(warped - np.arange(80)).max() <= frames + 1e-9


def test_swapped_segments_keep_every_frame() -> None:
    clip = Footage(None, motion=np.arange(50.0)[:, None])
    order = corrupt(clip, "swapped segments", 10).motion[:, 0]
    assert sorted(order) == list(range(50))
    assert order[:3].tolist() == [10, 11, 12]
    assert order[-1] == 49


def test_frozen_eyes_leave_the_mouth_and_the_head_alone() -> None:
    clip = footage()
    frozen = corrupt(clip, "frozen eyes", 1.0)
    assert np.ptp(frozen.motion[:, BLINK], axis=0).max() == 0
    assert np.ptp(frozen.motion[:, GAZE], axis=0).max() == 0
    np.testing.assert_array_equal(frozen.motion[:, LOWER_FACE], clip.motion[:, LOWER_FACE])
    np.testing.assert_array_equal(frozen.frames[:, :10], clip.frames[:, :10])
    np.testing.assert_array_equal(frozen.landmarks[:, 13], clip.landmarks[:, 13])


def test_jitter_moves_pictures_and_landmarks_together_by_its_pixels() -> None:
    clip = footage(200)
    moved = corrupt(clip, "jitter", 2.0)
    steps = (moved.landmarks - clip.landmarks)[:, 0, :2]
    assert steps.std() == pytest.approx(2.0, rel=0.15)
    middle = (moved.frames.astype(int) - clip.frames)[:, 40:56, 40:56, 1].mean((1, 2))
    np.testing.assert_allclose(middle, -2 * steps[:, 0], atol=0.7)


def test_a_seam_is_a_step_of_its_levels_on_the_border_and_nothing_outside() -> None:
    clip = footage()
    sewn = corrupt(clip, "seam", 20).frames.astype(int) - clip.frames
    left, top, right, bottom = paste_square(clip.landmarks, (SIDE, SIDE))
    assert sewn[0, top, left:right, 1].max() == 20
    outside = sewn.copy()
    outside[:, top:bottom, left:right] = 0
    assert not outside.any()


def test_what_a_clip_lacks_is_asked_for() -> None:
    with pytest.raises(BadInput, match="frames"):
        corrupt(Footage(None, motion=np.zeros((9, 30))), "blur", 1.0)
    with pytest.raises(BadInput, match="landmarks"):
        corrupt(Footage(np.zeros((9, 64, 64, 3), np.uint8)), "seam", 1.0)
    with pytest.raises(BadInput, match="Unknown corruption 'bluur'"):
        corrupt(footage(9), "bluur", 1.0)


def test_the_catalogue_has_every_kind_and_a_name_means_one_thing_for_one_subject() -> None:
    assert {entry.kind for entry in CATALOGUE} == set(KINDS)
    for kinds in ((*CLIP_KINDS, "head"), ("motion",), ("still",)):
        names = [entry.name for entry in CATALOGUE if entry.kind in kinds]
        assert len(set(names)) == len(names)
    assert not MOTION_CORRUPTIONS.keys() & HELD_OUT_MOTION_CORRUPTIONS.keys()
    assert corruptions("motion") == MOTION_CORRUPTIONS | HELD_OUT_MOTION_CORRUPTIONS


def test_one_function_damages_clips_motion_and_stills() -> None:
    @dataclass
    class Portrait:
        picture: np.ndarray
        landmarks: np.ndarray | None

    clip = footage()
    assert clip.motion is not None
    window = MotionWindow(clip.motion, np.ones(FRAMES), clip.motion, 8, 20)
    assert corrupt(window, "frozen eyes", 1.0).shape == (20, 30)
    assert np.ptp(corrupt(window, "frozen eyes", 1.0)[:, GAZE], axis=0).max() == 0
    assert clip.frames is not None
    assert clip.landmarks is not None
    portrait = Portrait(clip.frames[0], clip.landmarks[0])
    assert corrupt(portrait, "dark", 1.0).mean() < 0.5 * portrait.picture.mean()
    with pytest.raises(BadInput, match="Unknown corruption 'offset': choose from shift"):
        corrupt(window, "offset", 1.0)


@pytest.mark.parametrize("name", corruptions("motion"))
def test_the_same_generator_damages_motion_the_same_way(name: str) -> None:
    clip = footage()
    assert clip.motion is not None
    window = MotionWindow(clip.motion, np.arange(FRAMES, dtype=float), clip.motion[::-1], 8, 20)
    strength = corruptions("motion")[name].coarse
    one, same = (corrupt(window, name, strength, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    np.testing.assert_array_equal(one, corrupt(window, name, strength, 3))
