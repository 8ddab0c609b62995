"""One sampler: a chunk at a time, everything at once and many voices in a batch are the same motion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowportrait.media.audio import SAMPLES_PER_FRAME
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.models.arflow import ARFlow
from flowportrait.models.conditioning import RewardSteering
from flowportrait.models.enhancer import load_enhancer
from flowportrait.models.sampler import GenerationSession, Sampler, sample_from_mel, sample_motion
from flowportrait.rendering.motion_basis import LOWER_FACE
from flowportrait.rendering.motion_filters import MotionLowPass
from tests import TESTS
from tests.models.test_generator_live import TINY, build
from tests.pipelines.test_steering import First

MODEL = build(TINY)
DATA = TESTS / "data" / "v0.1"
ROUNDING = 1e-4
"""In standard deviations of real motion: a matrix product rounds a row otherwise where it has other rows beside it."""


def speech(seconds: float, seed: int = 0, noise: float = 0.01) -> np.ndarray:
    """Syllables and pauses ``[N]`` in noise."""
    t = np.arange(int(16_000 * seconds))
    rng = np.random.default_rng(seed)
    voice = 0.1 * np.sin(t / (9 + seed)) * np.clip(np.sin(t / 2_500 + seed), 0, 1)
    return (voice + noise * rng.normal(size=len(t))).astype(np.float32)


SPEECH = speech(3.21)


def sampled(sampler: Sampler, pieces: list[np.ndarray]) -> torch.Tensor:
    return torch.cat([motion for piece in pieces for motion in sampler.push(piece)] + list(sampler.finish()), 1)


def in_pieces(sound: np.ndarray, lengths: list[int]) -> list[np.ndarray]:
    """The sound cut into pieces of these lengths, over and over."""
    ends = np.cumsum(np.resize(lengths, len(sound) // min(lengths) + 1))
    return np.split(sound, ends[ends < len(sound)], axis=-1)


@settings(max_examples=15)
@given(st.lists(st.integers(60, SAMPLES_PER_FRAME), min_size=1, max_size=5))
def test_pieces_of_a_frame_or_less_give_the_same_bits_however_they_are_cut(lengths: list[int]) -> None:
    frames = sampled(Sampler(MODEL, [3]), in_pieces(SPEECH, [SAMPLES_PER_FRAME]))
    assert torch.equal(sampled(Sampler(MODEL, [3]), in_pieces(SPEECH, lengths)), frames)


@settings(max_examples=15)
@given(st.lists(st.integers(200, 20_000), min_size=1, max_size=5))
def test_any_cut_gives_the_motion_of_the_whole(lengths: list[int]) -> None:
    whole = sampled(Sampler(MODEL, [3]), [SPEECH])
    pieces = sampled(Sampler(MODEL, [3]), in_pieces(SPEECH, lengths))
    assert whole.shape == (1, -(-len(SPEECH) // SAMPLES_PER_FRAME), 30)
    assert torch.allclose(pieces, whole, atol=ROUNDING)


@pytest.mark.parametrize("gain", ["running", "whole"])
def test_a_batch_gives_each_voice_what_it_gets_alone(gain: str) -> None:
    """One is clear and one noisy, so that the denoiser does not do the same for both."""
    sounds = np.stack([speech(3.0, 1, 0.0), speech(3.0, 2, 0.05), speech(3.0, 3)])
    options = {"enhancer": load_enhancer(), "gain": gain}
    together = sampled(Sampler(MODEL, [5, 6, 7], **options), in_pieces(sounds, [7_000]))
    for row, seed in enumerate((5, 6, 7)):
        alone = sampled(Sampler(MODEL, [seed], **options), in_pieces(sounds[row], [7_000]))
        assert torch.allclose(together[row], alone[0], atol=ROUNDING)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_a_session_is_a_sampler_of_one_voice() -> None:
    session = GenerationSession(MODEL, seed=4, intensity=1.0)
    motion = torch.cat([*session.push(SPEECH), *session.finish()])
    assert torch.equal(motion, sampled(Sampler(MODEL, [4]), [SPEECH])[0])


def test_the_gain_of_a_whole_recording_waits_for_its_end_and_ignores_how_loud_it_is() -> None:
    sampler = Sampler(MODEL, [3], gain="whole")
    assert list(sampler.push(SPEECH)) == []
    whole = torch.cat(list(sampler.finish()), 1)
    assert torch.allclose(whole, sample_motion(MODEL, SPEECH * 0.5, [3]), atol=1e-3)
    quiet_start = np.concatenate([0.1 * SPEECH, SPEECH])
    running, known = (sample_motion(MODEL, quiet_start, [3], gain=gain) for gain in ("running", "whole"))
    assert not torch.allclose(running, known, atol=0.05)


def test_the_networks_see_the_recording_as_they_would_without_a_stream() -> None:
    """But for the last chunk, after which a stream hears silence and a window of log-mel ends: what is drawn is what
    the networks draw from the log-mel at once, before it is made calm."""
    model = build(replace(TINY, ease=0.0))
    loud = np.tile(speech(0.2, 1, 0.2), 16)[: SAMPLES_PER_FRAME * 4 * 15]
    delivered = sample_motion(model, loud, [3])
    drawn = MotionLowPass()(sample_from_mel(model, log_mel(normalize_loudness(loud))[None], [3]))
    assert torch.allclose(delivered[:, :-8], drawn[:, :-8], atol=ROUNDING)


def test_silence_closes_the_lips_of_its_own_voice_alone() -> None:
    sounds = np.stack([speech(3.0, 1), np.zeros(48_000, np.float32)])
    lips = sample_motion(MODEL, sounds, [3, 3])[..., LOWER_FACE]
    assert lips[1].abs().max() == 0
    assert lips[0].abs().max() > 0.1


def test_a_reward_guides_every_voice_of_a_batch_by_itself() -> None:
    steering = RewardSteering(First(), guide=(1.0, 0.5, 0.0))
    sounds = np.stack([speech(2.0, 1), speech(2.0, 2)])
    together = sampled(Sampler(MODEL, [1, 2], steering=steering), [sounds])
    alone = sampled(Sampler(MODEL, [2], steering=steering), [sounds[1]])
    assert torch.allclose(together[1], alone[0], atol=ROUNDING)
    with pytest.raises(ValueError, match="one stream only"):
        Sampler(MODEL, [1, 2], steering=RewardSteering(First(), choose=(1.0, 0.0, 0.0), candidates=3))


def test_a_batch_goes_on_from_its_state_as_if_nothing_had_happened() -> None:
    sounds, enhancer = np.stack([speech(4.0, 1), speech(4.0, 2, 0.05)]), load_enhancer()
    first = Sampler(MODEL, [1, 2], enhancer=enhancer)
    list(first.push(sounds[:, :30_123]))
    second = Sampler(MODEL, state=first.state(), enhancer=enhancer)
    rest = [sampled(sampler, [sounds[:, 30_123:]]) for sampler in (first, second)]
    assert second.seeds == [1, 2]
    assert torch.allclose(*rest, atol=0.02)


def test_a_state_of_version_0_1_goes_on_to_the_motion_of_version_0_1() -> None:
    """Five seconds of a voice in noise, of which 2.7 s were spoken when the state was written."""
    stored = torch.load(DATA / "stream_state.pt", weights_only=False)
    t, rng = np.arange(80_000), np.random.default_rng(7)
    sound = 0.05 * np.sin(t / 9) * (1 + np.sin(t / 2500)) + 0.04 * rng.normal(size=len(t))
    model: ARFlow = build(replace(TINY, front_end="mel", anchor=False))
    session = GenerationSession(model, state=stored["state"], enhancer=load_enhancer())
    motion = torch.cat([*session.push(sound.astype(np.float32)[43_210:]), *session.finish()])
    assert session.seeds == [5]
    assert torch.allclose(motion, stored["motion"], atol=1e-3)


def test_no_sound_gives_no_motion() -> None:
    assert torch.cat(list(Sampler(MODEL, [1, 2]).finish()), 1).shape == (2, 0, 30)
    assert torch.cat(list(GenerationSession(MODEL).finish())).shape == (0, 30)
