"""Who speaks when in a conversation, and how the other listens.

Who speaks when.

    one clock     both recordings run from the start: a conversation on two tracks
    turns         one recording after the other, each on its speaker's track

A voice that a microphone picks up from across the table is not its owner's: where the other track is far louder, a
track is silent.

A listener listens: the generator has learned speaking only, so what belongs to listening is laid over it.

    listening(t) = other speaks · self silent
    head   ← head · (1 − listening / 2)  +  nods where the other pauses
    lids   ← lids ∨ blinks, some of them at those pauses
    gaze   ← gaze towards the other

Lips need nothing: they rest while their own track is silent. People nod and blink where a speaker pauses far more than
elsewhere (Dittmann & Llewellyn 1968; Nakano & Kitazawa 2010).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np
import torch
from scipy.ndimage import maximum_filter1d, uniform_filter1d

from flowportrait.media.audio import SAMPLE_RATE, Sound
from flowportrait.media.mel import SAMPLES_PER_FRAME, level, level_gain
from flowportrait.media.video import FPS
from flowportrait.rendering.motion_basis import BLINK, GAZE, HEAD, MotionBasis
from flowportrait.rendering.motion_filters import gaze_coefficients

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


NOD_DEGREES, NOD_HERTZ, NOD_FRAMES = 4.0, 2.5, 20
NOD_SHARE = 0.6
"""Of the other's pauses, how many are answered by a nod."""
BLINK_SECONDS = (2.0, 5.0)
"""Between blinks."""
_BLINK = 3.6 * torch.tensor([0.45, 1.0, 0.85, 0.45, 0.15])
"""A closing lid, in standard deviations; as deep as the generator's own."""
_EASE = 9
"""Frames over which a part is taken up and given up."""
_PAUSE = 5
"""Frames without speech after which a pause is taken for one."""


@dataclass(frozen=True)
class Listener:
    """How one person listens. toward: where the other is, -1 to the viewer's left, 1 to the right, 0 in front."""

    toward: float = 0.0
    gaze_degrees: float = 7.0
    seed: int = 0

    def __call__(self, motion: torch.Tensor, own: np.ndarray, other: np.ndarray) -> torch.Tensor:
        """Motion ``[T, 30]`` of who speaks where ``own`` ``[T]`` and listens where ``other`` ``[T]`` is above zero."""
        rng = np.random.default_rng(self.seed)
        listening = (other > 0) & (own == 0)
        share = torch.from_numpy(uniform_filter1d(listening.astype(np.float32), _EASE))[:, None]
        result = motion.clone()
        result[:, HEAD] *= 1 - 0.5 * share
        result[:, GAZE] += share * gaze_coefficients(self.toward * self.gaze_degrees, 0.0)
        silent = own == 0
        pauses = [at for at in pauses_of(other) if silent[at : at + NOD_FRAMES].all()]
        nodded = [at for at in pauses if rng.random() < NOD_SHARE]
        for at in nodded:
            nod = _nod()[: len(result) - at]
            result[at : at + len(nod), HEAD.start] += nod
        for at in self._blinks(silent, pauses, rng):
            lid = _BLINK[: len(result) - at, None]
            result[at : at + len(lid), BLINK] = torch.maximum(result[at : at + len(lid), BLINK], lid)
        return result

    def _blinks(self, silent: np.ndarray, pauses: list[int], rng: np.random.Generator) -> list[int]:
        found, due = [], 0
        for at in range(len(silent)):
            if silent[at] and (at >= due or (at in pauses and at > due - FPS)):
                if at:
                    found.append(at)
                due = at + round(FPS * rng.uniform(*BLINK_SECONDS))
            elif not silent[at]:
                # A speaker blinks by himself; the next of these is due some time after.
                due = max(due, at + FPS)
        return found


def pauses_of(speech: np.ndarray) -> list[int]:
    """Frames in which a pause of the speaker with gate ``[T]`` is noticed."""
    spoken = speech > 0
    ends = np.flatnonzero(spoken[:-1] & ~spoken[1:]) + 1
    return [int(end) for end in ends if not spoken[end : end + _PAUSE].any()]


def _nod() -> torch.Tensor:
    """Pitch ``[20]`` in standard deviations of a nod: down and up, and once more but less."""
    time = np.arange(NOD_FRAMES) / FPS
    down = (1 - np.cos(2 * np.pi * NOD_HERTZ * time)) / 2
    degrees = NOD_DEGREES * down * np.linspace(1, 0, NOD_FRAMES)
    return torch.from_numpy(np.radians(degrees)).float() / MotionBasis.load().head_std[0]
