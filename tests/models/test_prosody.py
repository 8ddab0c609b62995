"""Prosody of synthetic voices whose pitch and pace are known, and motion that follows it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from flowportrait.errors import BadInput
from flowportrait.models.prosody import PITCH, VOICING, ProsodyTracker, prosody_columns, track_prosody
from flowportrait.models.prosody_motion import LAGS, ProsodyMotion, VoiceFollower, voice_follower
from flowportrait.models.sampler import GenerationSession, sample_motion
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.rendering.motion_basis import BROWS, HEAD, LOWER_FACE, MotionBasis, close_lips, lip_pair_gaps
from tests.models.test_generator_live import TINY, build

RATE = 16_000


def voice(seconds: float, pitch: float = 140.0, syllables: float = 4.0, depth: float = 1.0) -> np.ndarray:
    """Return harmonics of a pitch in Hz, louder and quieter so many times a second ``[N]``."""
    clock = np.arange(int(RATE * seconds)) / RATE
    harmonics = sum(np.cos(2 * np.pi * k * pitch * clock) / k for k in range(1, int(4000 / pitch)))
    loudness = 10 ** (-depth * (1 + np.cos(2 * np.pi * syllables * clock)) / 2)
    return (0.1 * harmonics * loudness).astype(np.float32)


@pytest.mark.parametrize("pitch", [80.0, 140.0, 220.0, 400.0])
def test_the_pitch_of_pulses_is_found_to_half_a_semitone_and_noise_has_none(pitch: float) -> None:
    columns = prosody_columns(voice(1.0, pitch, depth=0.0))
    assert np.abs(columns[:, PITCH] - 12 * np.log2(pitch / 100)).max() < 0.5
    assert columns[:, VOICING].min() > 0.8
    noise = np.random.default_rng(0).normal(size=RATE).astype(np.float32) * 0.1
    assert np.median(prosody_columns(noise)[:, VOICING]) < 0.5


def test_prosody_does_not_depend_on_the_gain_of_the_recording_nor_on_the_pieces() -> None:
    sound = voice(4.0)
    loud, tracker = track_prosody(sound)
    quiet, other = track_prosody(sound * 0.1)
    assert np.allclose(loud, quiet, atol=0.02)
    assert np.allclose(tracker.mean, other.mean, atol=0.05)
    pieces = ProsodyTracker()
    parts = np.concatenate([pieces.push(piece) for piece in sound.reshape(-1, 640)])
    assert np.array_equal(parts, loud[: len(parts)])
    assert len(parts) >= len(loud) - 1


def test_even_speech_without_pauses_is_calmer_than_speech_that_rises_and_falls() -> None:
    weights = ProsodyMotion.load()
    read, free = (track_prosody(voice(6.0, syllables=s, depth=d))[1] for s, d in ((7.0, 0.7), (2.5, 1.4)))
    assert weights.liveliness(read) < weights.liveliness(free)
    assert weights.liveliness(ProsodyTracker()) == 0
    factors = [weights.lip_factor(value) for value in (-1.0, 0.0, 1.0)]
    assert 0.7 < factors[0] < factors[1] < factors[2] < 1.5


def test_closed_lips_stay_closed_and_open_ones_keep_their_moments() -> None:
    basis, generator = MotionBasis.load(), torch.Generator().manual_seed(0)
    motion = torch.randn(120, 30, generator=generator)
    lively = VoiceFollower(1.0)
    lively.push(voice(5.0))
    followed = torch.cat([lively(chunk) for chunk in motion.split(4)])
    factor = ProsodyMotion.load().lip_factor(1.0)
    before, after = (lip_pair_gaps(basis.shape(track, close_lips(basis.canonical))) for track in (motion, followed))
    closed = before.abs() < 1e-6
    assert 0.1 < closed.float().mean() < 0.9
    assert after[closed].abs().max() < 1e-5
    assert torch.allclose(after, factor * before, atol=1e-4)


def test_accents_move_brows_and_head_alone_smoothly_and_within_bounds() -> None:
    weights, sound = ProsodyMotion.load(), voice(8.0, syllables=0.7, depth=1.5)
    features, _ = track_prosody(sound)
    accents = weights.accent_motion(features, 1.0)
    assert len(accents) == len(features) + LAGS[0] - LAGS[-1]
    moved = set(torch.nonzero(accents.abs().sum(0)).flatten().tolist())
    assert moved <= {*range(BROWS.start, BROWS.stop), *range(HEAD.start, HEAD.stop)}
    assert moved
    assert accents.abs().max() <= 2.5 * weights.accent_size.max() + 1e-5
    assert not accents[:, LOWER_FACE].any()


@pytest.mark.parametrize("style", ["auto", "lively"])
def test_pieces_change_nothing_and_another_process_continues(style: str) -> None:
    model, sound = build(TINY), voice(4.3)
    whole = sample_motion(model, sound[None], [3], gain="running", follower=voice_follower(style))[0]
    session = GenerationSession(model, 3, follower=voice_follower(style))
    first = torch.cat(list(session.push(sound[:33_333])))
    disk = io.BytesIO()
    torch.save(session.state(), disk)
    disk.seek(0)
    resumed = GenerationSession(model, state=torch.load(disk, weights_only=False))
    rest = torch.cat([*resumed.push(sound[33_333:]), *resumed.finish()])
    assert torch.allclose(whole, torch.cat([first, rest]), atol=0.02)


def test_plain_is_the_generator_alone_and_other_styles_differ_in_size() -> None:
    pipeline, sound = AnimatePipeline(build(TINY)), voice(3.0)
    motions = {name: torch.cat(list(pipeline.motion(sound, style=name))) for name in ("plain", "calm", "lively")}
    alone = GenerationSession(pipeline.generator)
    assert torch.equal(motions["plain"], torch.cat([*alone.push(sound), *alone.finish()]))
    sizes = {name: float(motion[:, LOWER_FACE].std(0).mean()) for name, motion in motions.items()}
    assert sizes["calm"] < sizes["plain"] < sizes["lively"]


def test_what_is_heard_moves_brows_and_head_and_leaves_the_lips_to_the_generator() -> None:
    pipeline, sound = AnimatePipeline(build(TINY)), voice(3.0)
    heard, plain = (torch.cat(list(pipeline.motion(sound, style=name))) for name in ("auto", "plain"))
    assert torch.equal(heard[:, LOWER_FACE], plain[:, LOWER_FACE])
    assert not torch.equal(heard[:, HEAD], plain[:, HEAD])


def test_an_unknown_style_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(BadInput, match=r"--style knows no 'loud': choose from auto, lively, calm, plain"):
        voice_follower("loud")
