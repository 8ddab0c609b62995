"""Other voices, rooms, microphones and lines out of the same speech; lips and timing stay valid.

``augment_wave``  tempo and pitch together, room, noise, line:   on samples, before anything listens
``augment``       vocal-tract length, microphone colour, noise, missing bands:   on log-mel ``(ln power + 9.5) / 4``
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.signal import butter, fftconvolve, sosfilt

from flowportrait.media.audio import SAMPLE_RATE

_LN_PER_UNIT = 4.0
SPEED = (0.92, 1.1)
"""How much faster the recording is played: sound and lips alike."""
REVERB_DB = NOISE_DB = (0.0, 20.0)
"""Range of direct sound over reverberation, and of speech over noise."""


def augment_wave(audio: np.ndarray, others: Sequence[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Speech ``[N]`` in another room over another line, and the speed it is played at.

    ``others`` are recordings to make babble of. Room, noise and line each happen in a part of the cases.
    """
    speed = float(rng.uniform(*SPEED))
    place = np.arange(0, len(audio) - 1, speed)
    wave = np.interp(place, np.arange(len(audio)), audio)
    if rng.random() < 0.4:
        wave = reverberate(wave, rng)
    if rng.random() < 0.6:
        voices = len(others) > 0 and rng.random() < 0.5
        noise = babble(others, len(wave), rng) if voices else coloured(len(wave), rng)
        below = 10 ** (-rng.uniform(*NOISE_DB) / 20)
        wave = wave + noise * (loudness(wave) / max(loudness(noise), 1e-9)) * below
    if rng.random() < 0.3:
        wave = _line(wave, rng)
    return (wave * 10 ** (rng.uniform(-6, 6) / 20)).clip(-1, 1).astype(np.float32), speed


def loudness(wave: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(wave))))


def reverberate(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A room: exponentially decaying noise after the direct sound (RT60 0.15–0.7 s)."""
    decay = rng.uniform(0.15, 0.7)
    length = int(decay * SAMPLE_RATE)
    tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    tail[: int(0.002 * SAMPLE_RATE)] = 0
    tail *= 10 ** (-rng.uniform(*REVERB_DB) / 20) / np.linalg.norm(tail)
    tail[0] = 1.0
    return fftconvolve(wave, tail)[: len(wave)]


def coloured(length: int, rng: np.random.Generator) -> np.ndarray:
    """Noise whose power falls with frequency as f^−a, a from 0 (white) to 2 (brown)."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequency = np.maximum(np.fft.rfftfreq(length, 1 / SAMPLE_RATE), 20.0)
    return np.fft.irfft(spectrum * frequency ** (-rng.uniform(0, 2) / 2), length)


def babble(others: Sequence[np.ndarray], length: int, rng: np.random.Generator) -> np.ndarray:
    """Three to six other people talking at once."""
    total = np.zeros(length)
    for index in rng.integers(len(others), size=int(rng.integers(3, 7))):
        other = others[index]
        total += np.roll(np.resize(other, length), int(rng.integers(length)))
    return total


def _line(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A telephone (300–3400 Hz, 8-bit μ-law) or a codec that cuts the treble off."""
    if rng.random() < 0.5:
        wave = sosfilt(butter(4, (300, 3400), "bandpass", fs=SAMPLE_RATE, output="sos"), wave)
        peak = max(np.abs(wave).max(), 1e-9)
        coded = np.sign(wave) * np.log1p(255 * np.abs(wave) / peak) / np.log(256)
        coded = np.round(coded * 127) / 127
        return np.sign(coded) * (np.expm1(np.abs(coded) * np.log(256)) / 255) * peak
    return sosfilt(butter(6, rng.uniform(3500, 7000), fs=SAMPLE_RATE, output="sos"), wave)


def augment(mel: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A new voice and room for each item of ``[B, 4T, 80]``; lips and timing stay valid."""
    batch, _, bands = mel.shape

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    # Vocal-tract length: read the spectrum at stretched band positions.
    position = torch.arange(bands) * uniform(0.85, 1.18, 1)
    lower = position.floor().clamp(0, bands - 1).long()
    upper = (lower + 1).clamp_max(bands - 1)
    fraction = (position - lower).clamp(0, 1)[:, None]
    steps = mel.shape[1]
    low_values = mel.gather(2, lower[:, None].expand(-1, steps, -1))
    high_values = mel.gather(2, upper[:, None].expand(-1, steps, -1))
    warped = low_values + fraction * (high_values - low_values)

    # Microphone colour: a smooth tilt and level.
    tilt = uniform(-0.35, 0.35, 1, 1) * torch.linspace(-1, 1, bands) + uniform(-0.25, 0.25, 1, 1)
    voiced = warped + tilt

    # Coloured noise at 0–20 dB below the clip's mean power, in half of the items.
    power = (voiced * _LN_PER_UNIT).exp()
    below = 10 ** (-uniform(0.0, 2.0, 1, 1)) * (torch.rand(batch, 1, 1, generator=generator) < 0.5)
    colour = (uniform(-2.0, 0.5, 1, 1) * torch.linspace(0, 1, bands)).exp()
    ripple = torch.empty_like(mel).exponential_(generator=generator)
    noise = colour * ripple * power.mean((1, 2), keepdim=True) * below
    noisy = (power + noise).log() / _LN_PER_UNIT

    # A band of up to ten mels lost, in half of the items.
    start = (uniform(0, bands) // 1).long()[:, None]
    width = (uniform(0, 10) * (torch.rand(batch, generator=generator) < 0.5)).long()[:, None]
    band = torch.arange(bands)[None]
    lost = (band >= start) & (band < start + width)
    return torch.where(lost[:, None], noisy.mean((1, 2), keepdim=True), noisy)
