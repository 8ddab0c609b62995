"""Log-mel features, four columns per video frame.

``mel[4 i + j]`` describes the sound around ``i / 25 + j / 100 + 0.005`` s (25 ms windows, 10 ms apart), so the
four columns of video frame ``i`` cover exactly the 40 ms it is on screen.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from flowportrait.media.audio import SAMPLE_RATE

N_MELS = 80
HOP = 160
WINDOW = 400
MELS_PER_FRAME = 4
SAMPLES_PER_FRAME = HOP * MELS_PER_FRAME

_FLOOR = 1e-6
_SPEECH_RMS = 0.05
_SILENCE_RMS = 1e-3


@lru_cache(maxsize=1)
def filters() -> torch.Tensor:
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(
        num_frequency_bins=257,
        num_mel_filters=N_MELS,
        min_frequency=50.0,
        max_frequency=7600.0,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(bank.astype(np.float32))


def frame_count(audio: np.ndarray | torch.Tensor) -> int:
    """Video frames (25 fps) that ``audio`` ``[..., N]`` at 16 kHz spans, at least one, the last one begun."""
    return max(1, -(-audio.shape[-1] // SAMPLES_PER_FRAME))


def log_mel(audio: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Natural-log mel energies ``[4 T, 80]`` float32 of 16 kHz samples ``[N]``, roughly in [-1, 3].

    T is ``frame_count(audio)``; the end is padded with silence.
    """
    wave = torch.as_tensor(audio, dtype=torch.float32)
    columns = frame_count(wave) * MELS_PER_FRAME
    centre = HOP // 2
    left = WINDOW // 2 - centre
    right = (columns - 1) * HOP + centre + WINDOW // 2 - wave.shape[-1]
    frames = F.pad(wave, (left, right)).unfold(-1, WINDOW, HOP)
    spectrum = torch.fft.rfft(frames * torch.hann_window(WINDOW), n=512).abs().square()
    return (torch.log(spectrum @ filters() + _FLOOR) + 9.5) / 4.0


def level(audio: np.ndarray) -> np.ndarray:
    """Bring speech ``[N]`` to a common loudness: RMS 0.05 over its louder half; near-silence is left alone."""
    blocks = audio[: len(audio) // HOP * HOP].reshape(-1, HOP)
    if not len(blocks):
        return audio
    wanted = gain((blocks.astype(np.float64) ** 2).mean(1))
    return audio if wanted == 1.0 else (audio * wanted).clip(-1.0, 1.0).astype(np.float32)


def gain(power: np.ndarray) -> float:
    """Factor that ``level`` applies, from the mean power of 10 ms blocks ``[n]``; 1 for near-silence."""
    ordered = np.sort(power)
    rms = float(np.sqrt(ordered[len(ordered) // 2 :].mean()))
    return 1.0 if rms < _SILENCE_RMS else min(_SPEECH_RMS / rms, 20.0)
