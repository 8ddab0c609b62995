"""Claims about taking noise off what the generator hears: clean speech untouched, live as offline."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tools.train_enhancer import FRAMES, generator_features, losses_of, mixture, music

from flowportrait.media.audio import SAMPLES_PER_FRAME
from flowportrait.media.mel import HOP_LENGTH, log_mel, normalize_loudness
from flowportrait.models.arflow import ARFlow
from flowportrait.models.enhancer import (
    CLEAN_DB,
    REMOVAL_FULL_DB,
    WINDOW,
    Enhancer,
    Isolator,
    NoiseRemoval,
    denoise_mel,
    load_enhancer,
    vorbis_window,
)
from flowportrait.models.sampler import GenerationSession, sample_motion
from flowportrait.models.speech_stream import LevelledSound
from flowportrait.speech.text_to_speech import synthesize_samples
from flowportrait.speech.voices import load_voice
from tests.models.test_generator_live import TINY, build, together


def syllables(seconds: float = 3.2) -> np.ndarray:
    clock = np.arange(int(16_000 * seconds)) / 16_000
    loud = 0.05 * (1 + np.sin(8 * np.pi * clock)) * np.random.default_rng(0).normal(size=len(clock))
    return loud.astype(np.float32)


def deciding(level: float) -> Enhancer:
    """Random weights that believe in so many decibels."""
    torch.manual_seed(0)
    enhancer = Enhancer()
    torch.nn.init.normal_(enhancer.added_out.weight, std=0.1)
    torch.nn.init.zeros_(enhancer.level_out.weight)
    torch.nn.init.constant_(enhancer.level_out.bias, level / 10)
    return enhancer.requires_grad_(False).eval()


def beside(enhancer: Enhancer) -> Enhancer:
    """With an isolator of random weights."""
    torch.manual_seed(1)
    enhancer.isolator = Isolator().requires_grad_(False).eval()
    return enhancer


CLEAN, NOISY, BESIDE = deciding(CLEAN_DB), deciding(0.0), beside(deciding(0.0))


@pytest.fixture(scope="module")
def model() -> ARFlow:
    return build(TINY)


def test_what_is_clean_is_heard_to_the_bit(model: ARFlow) -> None:
    mel = log_mel(syllables())
    columns, softer = denoise_mel(CLEAN, mel, syllables())
    assert torch.equal(columns, mel)
    assert softer == [1.0] * (len(mel) // 4)
    sound = syllables()
    plain, heard = (together(GenerationSession(model, 3, enhancer=e), [sound]) for e in (None, CLEAN))
    assert torch.equal(plain, heard)


def test_noise_is_taken_off_little_by_little_and_then_wholly() -> None:
    hearing = NoiseRemoval()
    shares = [hearing._weight(0.0) for _ in range(60)]
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert hearing.estimate < REMOVAL_FULL_DB
    back = [hearing._weight(CLEAN_DB) for _ in range(400)]
    assert back[-1] == 0.0


@pytest.mark.parametrize("both", [NOISY, BESIDE])
def test_columns_in_pieces_are_cleared_as_the_whole_is(both: Enhancer) -> None:
    sound, hearing = LevelledSound(), NoiseRemoval()
    pieces = [sound.push(piece) for piece in np.split(syllables(), 80)]
    made = [hearing(both, columns, levelled) for columns, _, levelled in pieces]
    columns, softer = torch.cat([part for part, _ in made]), [share for _, part in made for share in part]
    heard = torch.cat([columns for columns, *_ in pieces])
    whole, all_softer = NoiseRemoval()(both, heard, np.concatenate([levelled for *_, levelled in pieces]))
    assert torch.allclose(columns, whole, atol=1e-5)
    assert np.allclose(softer, all_softer, atol=1e-4)
    assert not torch.allclose(columns, heard, atol=0.05)


def test_a_noisy_stream_is_performed_as_the_whole_recording_and_survives_a_state(model: ARFlow) -> None:
    sound = syllables()
    whole = together(GenerationSession(model, 3, enhancer=BESIDE), [sound])
    cuts = np.sort(np.random.default_rng(1).integers(0, len(sound), 15))
    pieces = together(GenerationSession(model, 3, enhancer=BESIDE), np.split(sound, cuts))
    assert torch.allclose(whole, pieces, atol=0.02)
    first = GenerationSession(model, 3, enhancer=BESIDE)
    before = list(first.push(sound[:20_000]))
    second = GenerationSession(model, state=copy.deepcopy(first.state()), enhancer=BESIDE)
    after = together(second, [sound[20_000:]])
    assert torch.allclose(whole, torch.cat([*before, after]), atol=0.02)
    assert not torch.allclose(whole, together(GenerationSession(model, 3), [sound]), atol=0.1)


def test_many_at_once_hear_what_one_hears(model: ARFlow) -> None:
    sounds = np.stack([syllables(), syllables()[::-1]])
    many = sample_motion(model, sounds, [3, 4], enhancer=NOISY)
    one = sample_motion(model, sounds[1:], [4], enhancer=NOISY)
    assert torch.allclose(many[1:], one, atol=1e-3)


def test_no_frame_is_cleared_by_what_comes_after_it() -> None:
    sound = syllables()
    mel, changed = log_mel(sound), sound.copy()
    other = mel.clone()
    other[43:] += 0.3
    changed[44 * 160 :] *= 0.5
    one, two = (NoiseRemoval()(BESIDE, c[:-1], wave)[0] for c, wave in ((mel, sound), (other, changed)))
    assert torch.allclose(one[:43], two[:43], atol=1e-6)
    assert not torch.allclose(one[43:], two[43:] - 0.3, atol=1e-3)


def test_training_speech_is_mixed_as_loud_as_said_and_its_loss_reaches_every_weight(model: ARFlow) -> None:
    rng, sounds = np.random.default_rng(0), [syllables(5.0), syllables(2.0)]
    for _ in range(8):
        heard, clean, level = mixture(sounds, rng)
        assert len(heard) == len(clean) == FRAMES * SAMPLES_PER_FRAME
        if level < CLEAN_DB:
            assert 10 * np.log10((clean**2).mean() / ((heard - clean) ** 2).mean()) == pytest.approx(level, abs=1e-6)
        else:
            assert np.abs(heard - clean).max() < 0.05 * np.abs(clean).max()
    assert np.isfinite(music(16_000, rng)).all()
    enhancer, mel = Enhancer(), torch.stack([log_mel(heard.astype(np.float32)), log_mel(clean.astype(np.float32))])
    spread = generator_features(model, mel).flatten(0, 1).std(0).clamp_min(1e-3)
    found = losses_of(enhancer, model, spread, mel, mel.flip(0), torch.tensor([5.0, 10.0]))
    found.sum().backward()
    assert (found > 0).all()
    for learns in (enhancer.added_out.weight, enhancer.level_out.weight):
        assert learns.grad is not None
        assert learns.grad.abs().sum() > 0


def test_the_shipped_one_leaves_clean_speech_and_brings_noisy_speech_nearer_to_it() -> None:
    pytest.importorskip("espeakng_loader")

    def say(text: str, language: str) -> np.ndarray:
        sound = np.concatenate(list(synthesize_samples([text], load_voice(f"espeak:{language}"))))
        return normalize_loudness(np.resize(sound, 640 * 100))

    speech = say("The birch canoe slid on the smooth planks, and glue held the sheet to the board.", "en-us")
    crowd = sum(say(text, language) for text, language in (
        ("Am Abend sitzen wir gerne noch lange im Garten.", "de"), ("Il fait beau ce matin dans la ville.", "fr"),
        ("Mañana por la tarde vamos todos al mercado.", "es"), ("Domani andiamo tutti insieme al mare.", "it"),
    ))  # fmt: skip
    noisy = normalize_loudness((speech + crowd * np.std(speech) / np.std(crowd) * 10 ** (-5 / 20)).astype(np.float32))
    clean, heard = log_mel(speech), log_mel(noisy)
    assert torch.equal(denoise_mel(load_enhancer(), clean, speech)[0], clean)
    made = denoise_mel(load_enhancer(), heard, noisy)[0]
    alone = copy.deepcopy(load_enhancer())
    alone.isolator = None
    late = slice(4 * 40, None)
    before, after, less = (
        (mel - clean)[late].abs().mean() for mel in (heard, made, denoise_mel(alone, heard, noisy)[0])
    )
    assert after < 0.92 * before
    assert after < less


def test_an_isolator_is_the_same_in_pieces_and_keeps_what_its_windows_add_up_to(tmp_path: Path) -> None:
    assert BESIDE.isolator is not None
    model, sound = BESIDE.isolator, torch.from_numpy(syllables())
    assert torch.allclose(
        vorbis_window()[:HOP_LENGTH].square() + vorbis_window()[HOP_LENGTH:].square(), torch.ones(HOP_LENGTH), atol=1e-6
    )
    state = model.initial_state()
    pieces = torch.cat([model(part, state) for part in sound.split(640 * 3)])
    assert torch.allclose(pieces, model(sound, model.initial_state()), atol=1e-4)
    state = model.initial_state()
    model(sound, state)
    assert sum(value.untyped_storage().nbytes() for value in state.values()) < 20_000
    model.save(tmp_path / "isolator.safetensors")
    kept = Isolator.load(tmp_path / "isolator.safetensors")
    spectra = torch.fft.rfft(sound.unfold(0, WINDOW, HOP_LENGTH) * vorbis_window()) / WINDOW
    ours, theirs = (net.separate(spectra, net.initial_state()) for net in (model, kept))
    assert (ours - theirs).abs().square().mean() < 1e-3 * ours.abs().square().mean()


def test_clean_speech_never_wakes_the_isolator_and_noise_wakes_it_once() -> None:
    sound = syllables()
    quiet, noisy = NoiseRemoval(), NoiseRemoval()
    quiet(beside(deciding(CLEAN_DB)), log_mel(sound)[:-1], sound)
    noisy(BESIDE, log_mel(sound)[:-1], sound)
    assert quiet.isolated is None
    assert len(quiet.past) == 25 * SAMPLES_PER_FRAME
    assert noisy.isolated is not None
    assert not len(noisy.past)
