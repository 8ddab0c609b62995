"""Claims about the main job from Python: length, determinism, silence, long speech."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut

from flowportrait import Animator
from flowportrait.errors import BadInput
from flowportrait.media.write_video import write_video
from flowportrait.models.speech_stream import closed_lips_share, speech_gate
from flowportrait.rendering.motion_basis import HEAD, LOWER_FACE, MotionBasis, close_lips, lip_pair_gaps

BASIS = MotionBasis.load()


def babble(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise in the rhythm of syllables, with pauses no longer than speech has."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16_000)) / 16_000
    return (0.1 * np.abs(np.sin(2 * np.pi * 2.5 * time)) * rng.normal(size=len(time))).astype(np.float32)


@pytest.fixture(scope="module", params=["sft", "rl"])
def animator(request: pytest.FixtureRequest) -> Animator:
    return Animator.from_pretrained(request.param)


def motion(animator: Animator, audio: np.ndarray, seed: int = 0) -> torch.Tensor:
    return torch.cat(list(animator.motion(audio, seed=seed)))


def test_a_photo_and_a_second_of_sound_are_25_frames(animator: Animator) -> None:
    photo = cv2.resize(astronaut(), (256, 256))
    frames = animator(photo, babble(1.0), size=128)
    assert frames.shape == (25, 128, 128, 3)
    assert frames.dtype == np.uint8
    assert np.abs(np.diff(frames.astype(int), axis=0)).max() > 10


def test_a_silent_second_keeps_the_lips_closed_and_the_face_alive(animator: Animator) -> None:
    speech = babble(1.0)
    audio = np.concatenate([speech, np.zeros(24_000, np.float32), speech])
    track = motion(animator, audio)
    gap = lip_pair_gaps(BASIS.shape(track, close_lips(BASIS.canonical)))[:, 4]
    assert gap[34:56].max() == 0.0
    assert gap[5:22].max() > 0.02
    assert gap[68:84].max() > 0.02
    assert track[34:56, HEAD].std(0).mean() > 0.01


def test_the_gate_ignores_short_pauses_and_follows_the_noise_floor() -> None:
    speech, hum = babble(1.0), 0.002 * np.random.default_rng(1).normal(size=40_000).astype(np.float32)
    assert speech_gate(np.concatenate([speech, np.zeros(2_400, np.float32), speech])).min() == 1.0
    audio = np.concatenate([speech, np.zeros(24_000, np.float32)]) + hum
    gate = speech_gate(audio)
    assert gate[5:20].min() == 1.0
    assert gate[35:].max() == 0.0
    assert speech_gate(np.zeros(16_000, np.float32)).max() == 0.0


@pytest.mark.parametrize("loudness", [0.0, 0.011, 0.02, 1.0])
def test_the_lips_rest_for_as_long_as_a_user_is_told(animator: Animator, loudness: float) -> None:
    audio = loudness * np.concatenate([np.zeros(24_000, np.float32), babble(2.0), np.zeros(16_000, np.float32)])
    resting = (motion(animator, audio)[:, LOWER_FACE] == 0).all(1)
    assert closed_lips_share(audio) == pytest.approx(float(resting.float().mean()), abs=0.05)


def test_half_a_minute_does_not_carry_the_head_away(animator: Animator) -> None:
    head = motion(animator, babble(30.0))[:, HEAD] * BASIS.head_std
    assert head[:, 3:5].abs().max() < 0.6
    assert head[:, :3].abs().max() < np.deg2rad(20)


def test_sound_too_short_to_speak_is_refused(animator: Animator) -> None:
    with pytest.raises(BadInput, match="longer recording"):
        animator.motion(np.zeros(1000, np.float32))


def test_a_looped_video_lasts_as_long_as_the_speech_and_without_as_long_as_it_lasts(
    animator: Animator, tmp_path: Path
) -> None:
    write_video(tmp_path / "me.mp4", [astronaut()[:256, 90:346]] * 8, None, 30)
    for seconds, frames in ((0.2, 8), (1.0, 30), (1.01, 31)):
        dub = animator.dub(tmp_path / "me.mp4", babble(seconds), loop=True)
        assert (len(dub), dub.fps) == (frames, 30)
    assert len(animator.dub(tmp_path / "me.mp4", babble(1.0))) == 8
    assert len(list(dub)) == 31


def test_a_photo_is_no_video_to_dub(animator: Animator, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "me.jpg"), astronaut()[..., ::-1])
    with pytest.raises(BadInput, match="as --image"):
        animator.dub(tmp_path / "me.jpg", babble(1.0))
