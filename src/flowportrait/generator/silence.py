"""Lips rest while nobody speaks.

    lower face ← gate(t) · lower face        gate: 1 in speech, 0 in pauses longer than a quarter of a second

Training footage hardly holds silence, so the generator cannot be trusted with it; a mouth that mumbles on in a pause
is among the first things people notice. Zero motion is this face with closed lips.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_closing, binary_dilation, convolve1d

from flowportrait.media.mel import SAMPLES_PER_FRAME, frame_count, level

QUIETEST, LOUDEST = 0.004, 0.012
"""Bounds of the loudness (RMS after levelling; speech has 0.05) below which a frame counts as a pause."""
SHORTEST_PAUSE = 7
MARGIN = 2
"""Frames that lips open before a sound and stay open after it."""
RAMP = np.hanning(7)[1:-1] / np.hanning(7)[1:-1].sum()


def speech_gate(audio: np.ndarray) -> np.ndarray:
    """Gate ``[T]`` float32 in [0, 1] for 16 kHz samples ``[N]``, T = ``frame_count(audio)``.

    The threshold follows the noise floor: twice the loudness that a tenth of the frames stays under.
    """
    frames = frame_count(audio)
    padded = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
    padded[: len(audio)] = level(audio)
    rms = np.sqrt((padded.reshape(frames, -1).astype(np.float64) ** 2).mean(1))
    threshold = np.clip(2 * np.quantile(rms, 0.1), QUIETEST, LOUDEST)
    around = np.pad(rms > threshold, SHORTEST_PAUSE)
    speech = binary_closing(around, np.ones(SHORTEST_PAUSE))[SHORTEST_PAUSE:-SHORTEST_PAUSE]
    speech = binary_dilation(speech, np.ones(2 * MARGIN + 1))
    return convolve1d(speech.astype(np.float32), RAMP.astype(np.float32), mode="nearest")
