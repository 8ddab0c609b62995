"""Claims about generation while the sound is still coming, on a tiny generator with random weights."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from flowportrait.media.mel import log_mel
from flowportrait.models.arflow import ARFlow
from flowportrait.models.backbone import GeneratorConfig
from flowportrait.models.sampler import GenerationSession
from flowportrait.models.speech_stream import LevelledSound, feature_stream, speech_gate

TINY = GeneratorConfig(
    hidden=32, layers=2, heads=2, window=4, horizon=6, audio_width=16, head_width=32, head_depth=1, steps=2
)


def build(config: GeneratorConfig) -> ARFlow:
    torch.manual_seed(0)
    model = ARFlow(config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    if model.speech is not None:
        model.speech.load_weights()
    return model.eval()


@pytest.fixture(scope="module", params=["whisper", "mel"])
def model(request: pytest.FixtureRequest) -> ARFlow:
    return build(replace(TINY, front_end=request.param, anchor=request.param == "whisper"))


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    rng = np.random.default_rng(0)
    wave = rng.normal(size=int(16_000 * 4.33)) * 0.1 * (1 + np.sin(np.arange(int(16_000 * 4.33)) / 900))
    wave[30_000:50_000] = 0
    return wave.astype(np.float32)


def together(session: GenerationSession, pieces: list[np.ndarray]) -> torch.Tensor:
    return torch.cat([motion for piece in pieces for motion in session.push(piece)] + list(session.finish()))


def test_the_pieces_lengths_change_nothing(model: ARFlow, speech: np.ndarray) -> None:
    whole = together(GenerationSession(model, seed=3), [speech])
    assert whole.shape == (-(-len(speech) // 640), 30)
    rng = np.random.default_rng(1)
    cuts = np.sort(rng.integers(0, len(speech), 25))
    pieces = together(GenerationSession(model, seed=3), np.split(speech, cuts))
    assert torch.allclose(whole, pieces, atol=0.02)
    assert not torch.allclose(whole, together(GenerationSession(model, seed=4), [speech]), atol=0.1)


def test_a_chunk_waits_for_120_ms_and_no_longer(model: ARFlow, speech: np.ndarray) -> None:
    session = GenerationSession(model)
    came = [sum(1 for _ in session.push(piece)) for piece in np.split(speech[: 640 * 23], 23)]
    assert np.flatnonzero(came).tolist() == [6, 10, 14, 18, 22]


def test_chunks_do_not_depend_on_sound_past_their_look_ahead(model: ARFlow, speech: np.ndarray) -> None:
    other = speech.copy()
    other[640 * 23 :] += 0.05
    first, second = (torch.cat(list(GenerationSession(model).push(wave))) for wave in (speech, other))
    assert torch.allclose(first[:19], second[:19], atol=1e-4)
    assert not torch.allclose(first[20:], second[20:], atol=1e-2)


def test_another_process_goes_on_from_a_small_state(model: ARFlow, speech: np.ndarray) -> None:
    one = GenerationSession(model, seed=5)
    for cut in (20_000, 47_123):
        before = torch.cat(list(one.push(speech[:cut])))
        disk = io.BytesIO()
        torch.save(one.state(), disk)
        assert disk.tell() < 300_000
        disk.seek(0)
        other = GenerationSession(model, state=torch.load(disk, weights_only=False))
        after, resumed = (together(session, [speech[cut:]]) for session in (one, other))
        assert torch.allclose(after, resumed, atol=0.02)
        assert len(before) + len(after) == -(-len(speech) // 640)
        one = GenerationSession(model, seed=5)


def test_mel_of_pieces_is_mel_of_the_whole(speech: np.ndarray) -> None:
    sound = LevelledSound()
    columns = torch.cat([sound.push(piece)[0] for piece in np.split(speech[: 640 * 60], 17 * np.arange(1, 2000))])
    whole = LevelledSound()
    assert torch.allclose(columns, whole.push(speech[: 640 * 60])[0], atol=1e-4)
    steady = np.random.default_rng(2).normal(size=640 * 50).astype(np.float32) * 0.05
    own, *_ = LevelledSound().push(steady)
    assert len(own) == 199
    assert (own - log_mel(steady)[:199]).abs().mean() < 0.05


def test_quiet_recordings_are_heard_as_loud_as_others(speech: np.ndarray) -> None:
    loud, quiet = (LevelledSound().push(speech * factor)[0] for factor in (1.0, 0.1))
    assert (loud - quiet).abs().max() < 0.05


def test_the_gate_opens_before_a_sound_and_closes_after_it() -> None:
    wave = np.zeros(640 * 60, np.float32)
    wave[640 * 20 : 640 * 30] = np.random.default_rng(0).normal(size=6400) * 0.1
    gate = speech_gate(wave)
    assert gate[:18].max() == 0
    assert gate[20:36].min() == 1
    assert gate[39:].max() == 0
    assert 0 < gate[18] < gate[19] < 1


def test_ears_hear_bit_by_bit_what_the_front_end_hears_at_once(model: ARFlow, speech: np.ndarray) -> None:
    mel = torch.cat([log_mel(speech)] * 2)[: 4 * 200]
    whole, stream, at = model.audio_features(mel[None])[0], feature_stream(model), 0
    exact = 1e-4 if model.speech is not None else 0.05
    for chunk, frames in enumerate(range(7, 200, 4)):
        stream.push(mel[at : 4 * frames - 1])
        first, end, at = max(0, 4 * chunk - 12), 4 * chunk + 7, 4 * frames - 1
        heard = stream.features(first, end)[0]
        assert len(heard) == end - first
        # A stream that is new in the middle lacks the two columns before its oldest token.
        assert (heard[:-1] - whole[first : end - 1]).abs().max() < (exact if chunk < 12 else 0.1)
        assert len(stream.mel) < 4 * 100
        if chunk in (11, 25):
            stream = feature_stream(model, stream.mel, stream.start)


def test_a_field_is_the_velocity_of_its_levels(model: ARFlow) -> None:
    context, x = torch.randn(2, 2, model.head.context.in_features), torch.randn(2, model.latent_dim)
    sigmas = torch.linspace(1, 0, 4)
    field = model.velocity_field(sigmas, context)
    for sigma in sigmas[:3]:
        assert torch.allclose(field(x, sigma), model.velocity(x, sigma, context), atol=1e-5)
