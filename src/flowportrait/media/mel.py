"""Log-mel features of speech, four columns per video frame, and the loudness they are computed at.

``mel[4 i + j]`` describes the sound around ``i / 25 + j / 100 + 0.005`` s (25 ms windows, 10 ms apart), so the
four columns of video frame ``i`` cover exactly the 40 ms it is on screen.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from flowportrait.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME

N_MELS = 80
HOP_LENGTH = 160
WINDOW_LENGTH = 400
MELS_PER_FRAME = SAMPLES_PER_FRAME // HOP_LENGTH

_FLOOR = 1e-6
_SPEECH_RMS = 0.05
QUIET_RMS, _SILENCE_RMS = 0.0056, 2e-4
"""−45 and −74 dB below full scale: between them, sound that is uneven in time is speech and even sound is noise."""
_UNEVEN = 5.0
"""Ratio of power between loud and quiet 50 ms windows (quantiles 0.95 and 0.1) above which sound is speech.

Hiss stays under 1.5, speech goes above 20.
"""
_BLOCKS_PER_WINDOW = 5


@lru_cache(maxsize=1)
def mel_filterbank() -> torch.Tensor:
    """Return Slaney's triangular filters of unit area ``[257, 80]``, 50 to 7600 Hz, evenly spaced on the mel scale."""
    low, high = hertz_to_mel(np.array([50.0, 7600.0]))
    corners = mel_to_hertz(np.linspace(low, high, N_MELS + 2))
    bins = np.linspace(0, SAMPLE_RATE // 2, 257)
    width = np.diff(corners)
    slopes = corners[None] - bins[:, None]
    bank = np.maximum(0.0, np.minimum(-slopes[:, :-2] / width[:-1], slopes[:, 2:] / width[1:]))
    bank *= 2.0 / (corners[2:] - corners[:-2])
    return torch.from_numpy(bank.astype(np.float32))


def hertz_to_mel(hertz: np.ndarray) -> np.ndarray:
    """Convert hertz to Slaney's mel scale: linear below 1 kHz, logarithmic above."""
    above = 15.0 + np.log(np.maximum(hertz, 1000.0) / 1000.0) * (27.0 / np.log(6.4))
    return np.where(hertz >= 1000.0, above, 3.0 * hertz / 200.0)


def mel_to_hertz(mel: np.ndarray) -> np.ndarray:
    """Convert Slaney's mel scale to hertz, the inverse of ``hertz_to_mel``."""
    above = 1000.0 * np.exp(np.log(6.4) / 27.0 * (np.maximum(mel, 15.0) - 15.0))
    return np.where(mel >= 15.0, above, 200.0 * mel / 3.0)


def frame_count(audio: np.ndarray | torch.Tensor) -> int:
    """Return the number of video frames (25 fps) that ``audio`` ``[..., N]`` at 16 kHz spans, rounded up."""
    return max(1, -(-audio.shape[-1] // SAMPLES_PER_FRAME))


def log_mel(audio: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Return natural-log mel energies ``[4 T, 80]`` float32 of 16 kHz samples ``[N]``, roughly in [-1, 3].

    T is ``frame_count(audio)``; the end is padded with silence.
    """
    wave = torch.as_tensor(audio, dtype=torch.float32)
    columns = frame_count(wave) * MELS_PER_FRAME
    centre = HOP_LENGTH // 2
    left = WINDOW_LENGTH // 2 - centre
    right = (columns - 1) * HOP_LENGTH + centre + WINDOW_LENGTH // 2 - wave.shape[-1]
    frames = F.pad(wave, (left, right)).unfold(-1, WINDOW_LENGTH, HOP_LENGTH)
    spectrum = torch.fft.rfft(frames * torch.hann_window(WINDOW_LENGTH), n=512).abs().square()
    return (torch.log(spectrum @ mel_filterbank() + _FLOOR) + 9.5) / 4.0


# --- Loudness ---------------------------------------------------------------------------


def normalize_loudness(audio: np.ndarray, block: int = HOP_LENGTH) -> np.ndarray:
    """Bring speech ``[N]`` to a common loudness, an RMS of 0.05 over its louder half.

    Silence and quiet noise are left unchanged.

    Args:
        audio: samples ``[N]``.
        block: samples in 10 ms.
    """
    factor = loudness_gain(audio, block)
    return audio if factor == 1.0 else (audio * factor).clip(-1.0, 1.0).astype(np.float32)


def loudness_gain(audio: np.ndarray, block: int = HOP_LENGTH) -> float:
    """Return the factor by which ``normalize_loudness`` multiplies samples ``[N]``."""
    blocks = audio[: len(audio) // block * block].reshape(-1, block)
    return loudness_gain_from_power((blocks.astype(np.float64) ** 2).mean(1)) if len(blocks) else 1.0


def normalize_quiet_recording(audio: np.ndarray) -> np.ndarray:
    """Return a whole recording ``[N]`` at 16 kHz with quiet speech raised to the common loudness.

    In a stream the first words of quiet speech would pass before it is known to be speech. Other recordings are
    unchanged.
    """
    power = (audio[: len(audio) // HOP_LENGTH * HOP_LENGTH].reshape(-1, HOP_LENGTH).astype(np.float64) ** 2).mean(1)
    return normalize_loudness(audio) if len(power) and _loudness(power) < QUIET_RMS else audio


def loudness_gain_from_power(power: np.ndarray) -> float:
    """Return the factor that ``normalize_loudness`` applies, from the mean power of 10 ms blocks ``[n]``.

    It is 1 for silence and for quiet sound that is as even as noise.
    """
    rms = _loudness(power)
    if rms < QUIET_RMS and (rms < _SILENCE_RMS or not _is_uneven(power)):
        return 1.0
    return _SPEECH_RMS / rms


def _loudness(power: np.ndarray) -> float:
    """Return the RMS of the louder half of blocks."""
    ordered = np.sort(power)
    return float(np.sqrt(ordered[len(ordered) // 2 :].mean()))


def _is_uneven(power: np.ndarray) -> bool:
    """Return whether the power of 10 ms blocks ``[n]`` rises and falls as that of syllables does."""
    windows = power[len(power) % _BLOCKS_PER_WINDOW :].reshape(-1, _BLOCKS_PER_WINDOW).mean(1)
    if len(windows) < 2:
        return False
    quiet, loud = np.quantile(windows, (0.1, 0.95))
    return bool(loud > _UNEVEN * max(quiet, 1e-12))
