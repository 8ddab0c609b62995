"""Who speaks when.

    one clock     both recordings run from the start: a conversation on two tracks
    turns         one recording after the other, each on its speaker's track

A voice that a microphone picks up from across the table is not its owner's: where the other track is far louder, a
track is silent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import maximum_filter1d

from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.mel import SAMPLES_PER_FRAME, level

SPEAKERS = 2
BETWEEN = 0.3
"""Seconds between turns."""
_CROSSTALK = 10 ** (-9 / 20)
"""A voice across the table arrives at least 9 dB below its owner's (both levelled); people who talk at once do not
differ so much for long."""
_AROUND = 9
"""Frames over which loudness is compared: a syllable's pause is not the other's turn."""
_FLOOR = 1e-4


def tracks(recordings: Sequence[tuple[int, np.ndarray]], in_turn: bool = False) -> np.ndarray:
    """Tracks ``[2, N]`` of 16 kHz from ``(speaker 0 or 1, samples)``, at a common loudness, without crosstalk."""
    placed: list[tuple[int, int, np.ndarray]] = []
    start = 0
    for speaker, samples in recordings:
        placed.append((speaker, start, level(samples)))
        if in_turn:
            start += len(samples) + round(BETWEEN * SAMPLE_RATE)
    result = np.zeros((SPEAKERS, max(start + len(samples) for _, start, samples in placed)), np.float32)
    for speaker, start, samples in placed:
        result[speaker, start : start + len(samples)] += samples
    return without_crosstalk(result)


def without_crosstalk(heard: np.ndarray) -> np.ndarray:
    """Tracks ``[2, N]`` with silence wherever the other is more than 9 dB louder around it."""
    frames = -(-heard.shape[1] // SAMPLES_PER_FRAME)
    padded = np.zeros((SPEAKERS, frames * SAMPLES_PER_FRAME))
    padded[:, : heard.shape[1]] = heard
    loudness = np.sqrt((padded.reshape(SPEAKERS, frames, -1) ** 2).mean(2))
    around = maximum_filter1d(loudness, _AROUND, axis=1) + _FLOOR
    own = (around >= _CROSSTALK * around[::-1]).repeat(SAMPLES_PER_FRAME, axis=1)
    # Where a track begins or ends, 40 ms of fading: a cut would click.
    weight = np.stack([np.convolve(row, np.full(SAMPLES_PER_FRAME, 1 / SAMPLES_PER_FRAME), "same") for row in own])
    return (heard * weight[:, : heard.shape[1]]).astype(np.float32)
