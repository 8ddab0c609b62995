"""Who speaks when.

    one clock     both recordings run from the start: a conversation on two tracks
    turns         one recording after the other, each on its speaker's track

A voice that a microphone picks up from across the table is not its owner's: where the other track is far louder, a
track is silent.
"""

from __future__ import annotations

from collections.abc import Sequence

import av
import numpy as np
from scipy.ndimage import maximum_filter1d

from flowportrait.media.audio import SAMPLE_RATE, Sound
from flowportrait.media.mel import SAMPLES_PER_FRAME, level, level_gain

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
    return without_crosstalk(_placed(recordings, in_turn))


def conversation_sound(
    recordings: Sequence[tuple[int, np.ndarray]], sounds: Sequence[Sound], in_turn: bool = False
) -> Sound:
    """What the video of a conversation plays: ``tracks`` mixed, at the highest rate of the recordings, in stereo where
    one of them is.

    Args:
        recordings: as for ``tracks``.
        sounds: the same recordings with their own rate and channels.
        in_turn: as for ``tracks``.
    """
    rate = max(SAMPLE_RATE, *(sound.rate for sound in sounds))
    layout = "mono" if all(sound.layout == "mono" for sound in sounds) else "stereo"
    weight = _owner_weight(_placed(recordings, in_turn))
    total = round(weight.shape[1] * rate / SAMPLE_RATE)
    mixed = np.zeros((1 if layout == "mono" else 2, total), np.float32)
    starts = _starts(recordings, in_turn)
    for (speaker, samples), sound, start in zip(recordings, sounds, starts, strict=True):
        place = round(start * rate / SAMPLE_RATE)
        played = _converted(sound, rate, layout)[:, : total - place] * level_gain(samples)
        moments = np.arange(place, place + played.shape[1]) * SAMPLE_RATE // rate
        mixed[:, place : place + played.shape[1]] += played * weight[speaker, moments]
    return Sound(mixed, rate, layout)


def without_crosstalk(heard: np.ndarray) -> np.ndarray:
    """Tracks ``[2, N]`` with silence wherever the other is more than 9 dB louder around it."""
    return (heard * _owner_weight(heard)).astype(np.float32)


def _starts(recordings: Sequence[tuple[int, np.ndarray]], in_turn: bool) -> list[int]:
    """At which sample of 16 kHz every recording begins."""
    lengths = [len(samples) + round(BETWEEN * SAMPLE_RATE) if in_turn else 0 for _, samples in recordings]
    return [sum(lengths[:index]) for index in range(len(lengths))]


def _placed(recordings: Sequence[tuple[int, np.ndarray]], in_turn: bool) -> np.ndarray:
    """Tracks ``[2, N]`` of the levelled recordings."""
    starts = _starts(recordings, in_turn)
    ends = [start + len(samples) for start, (_, samples) in zip(starts, recordings, strict=True)]
    result = np.zeros((SPEAKERS, max(ends)), np.float32)
    for start, end, (speaker, samples) in zip(starts, ends, recordings, strict=True):
        result[speaker, start:end] += level(samples)
    return result


def _owner_weight(heard: np.ndarray) -> np.ndarray:
    """How much of each track ``[2, N]`` is its owner's voice at every sample, 0 to 1."""
    frames = -(-heard.shape[1] // SAMPLES_PER_FRAME)
    padded = np.zeros((SPEAKERS, frames * SAMPLES_PER_FRAME))
    padded[:, : heard.shape[1]] = heard
    loudness = np.sqrt((padded.reshape(SPEAKERS, frames, -1) ** 2).mean(2))
    around = maximum_filter1d(loudness, _AROUND, axis=1) + _FLOOR
    own = (around >= _CROSSTALK * around[::-1]).repeat(SAMPLES_PER_FRAME, axis=1)
    # Where a track begins or ends, 40 ms of fading: a cut would click.
    weight = np.stack([np.convolve(row, np.full(SAMPLES_PER_FRAME, 1 / SAMPLES_PER_FRAME), "same") for row in own])
    return weight[:, : heard.shape[1]]


def _converted(sound: Sound, rate: int, layout: str) -> np.ndarray:
    """Samples ``[C, N]`` of a sound at another rate and in other channels."""
    if (sound.rate, sound.layout) == (rate, layout):
        return sound.samples
    resampler = av.AudioResampler(format="flt", layout=layout, rate=rate)
    interleaved = np.ascontiguousarray(sound.samples.T, np.float32).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(interleaved, format="flt", layout=sound.layout)
    frame.sample_rate = sound.rate
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    channels = av.AudioLayout(layout).nb_channels
    return np.concatenate([part.to_ndarray().reshape(-1, channels) for part in frames]).T
