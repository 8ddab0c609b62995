"""Claims about finished videos of any generator as a batch: frames and sound in, every reward out."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from flowportrait.commands.evaluate import ScoreOptions, run_score
from flowportrait.errors import BadInput
from flowportrait.media.portrait import Portrait
from flowportrait.media.write_video import write_video
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.registry import CompositeReward

FRAMES = 30


@lru_cache(maxsize=1)
def video() -> tuple[np.ndarray, torch.Tensor, Portrait]:
    """A drawn talking portrait ``[T, 256, 256, 3]`` and the motion it was drawn from."""
    portrait = Portrait.from_image(astronaut())
    time = torch.arange(FRAMES)[:, None] / 25
    motion = torch.zeros(FRAMES, 30)
    motion[:, :4] = torch.sin(2 * torch.pi * (2.0 * time + torch.linspace(0, 0.6, 4)))
    return np.stack(list(MotionCodec(portrait, 256).decode(motion))), motion, portrait


def sound(seconds: float = FRAMES / 25) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.05, round(16000 * seconds)).astype(np.float32)


@lru_cache(maxsize=1)
def looked() -> RewardBatch:
    frames, _, portrait = video()
    grey = np.full_like(frames, 127)
    return RewardBatch.from_frames([frames, grey], [sound(), sound(0.5)], portraits=[portrait, portrait])


def test_motion_comes_back_from_pixels() -> None:
    drawn, tracked = video()[1][:, :4], looked().motion[0, :, :4]
    lead = (drawn - drawn.mean(0)).flatten(), (tracked - tracked.mean(0)).flatten()
    assert torch.corrcoef(torch.stack(lead))[0, 1] > 0.8


def test_frames_and_landmarks_share_one_still_crop() -> None:
    batch = looked()
    assert batch.frames((0, 7)).shape == (2, 2, 3, 128, 128)
    points = batch.places((0, 7))[0]
    extent = points[..., 1].max(1).values - points[..., 1].min(1).values
    assert (extent / 128 > 0.4).all()
    assert (extent / 128 < 0.7).all()


def test_every_reward_scores_a_face_and_none_invents_one() -> None:
    weights = dict.fromkeys(
        (
            "sync",
            "expressiveness",
            "eyes",
            "head",
            "smoothness",
            "temporal",
            "perceptual",
            "identity",
            "sharpness",
            "realness",
        ),
        1.0,
    )
    for name, score in CompositeReward.of(weights)(looked()).items():
        assert score.valid.tolist() == [True, False], name
        assert torch.isfinite(score.value[0]), name
        assert score.failures[1] is not None
        assert score.failures[1].detail == f"no face in 100% of {FRAMES} frames"


def test_a_finished_video_of_its_own_portrait_is_that_person() -> None:
    assert CompositeReward.of({"identity": 1.0})(looked())["identity"].value[0] > 0.8


def test_other_frame_rates_are_resampled_by_time() -> None:
    frames = video()[0]
    slow = RewardBatch.from_frames([frames[::2]], [sound()], fps=12.5)
    assert slow.motion.shape[1] == FRAMES
    assert torch.equal(slow.frames((4,)), slow.frames((5,)))
    assert slow.audio is not None
    assert slow.audio.shape == (1, 640 * FRAMES)


@pytest.mark.parametrize(
    ("frames", "sounds", "message"),
    [
        (lambda v: [v, v[:-5]], 2, "Videos of 1.00 s, 1.20 s do not make one batch"),
        (lambda v: [v], 2, "1 videos with 2 sounds"),
        (lambda v: [v.astype(np.float32)], 1, "Video 0 is float32"),
        (lambda v: [v[..., 0]], 1, "frames are RGB uint8"),
    ],
)
def test_what_does_not_make_a_batch_is_said(frames, sounds: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        RewardBatch.from_frames(frames(video()[0]), [sound()] * sounds)


def test_a_rate_of_nothing_is_bad_input() -> None:
    with pytest.raises(BadInput, match="0 frames a second are not possible"):
        RewardBatch.from_frames([video()[0]], [sound()], fps=0)


def test_the_command_scores_any_video_and_says_what_it_could_not(tmp_path: Path) -> None:
    write_video(tmp_path / "talk.mp4", video()[0], sound())
    videos = (tmp_path / "talk.mp4",)
    found = run_score(ScoreOptions(videos, rewards="sync,head,silent_lip", json=True))[str(tmp_path / "talk.mp4")]
    assert isinstance(found["sync"], float)
    assert found["silent_lip"] == "speech throughout: no silence to be silent in"
    with pytest.raises(BadInput, match="'identity' needs portrait"):
        run_score(ScoreOptions(videos, rewards="identity", json=True))
