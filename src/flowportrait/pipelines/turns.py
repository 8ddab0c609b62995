"""Timing of a two-person conversation: who speaks when, and how the other one listens.

Recordings are placed on two tracks of 16 kHz, either all from the start or one after the other (``turns``). A
microphone also picks up the voice from across the table, so a track is muted wherever the other one is far louder.

The generator was trained on speech only, so the behaviour of a listener is added to its motion:

    listening(t) = other speaks · self silent
    head   ← head · (1 − listening / 2)  +  nods at pauses of the other
    lids   ← max(lids, blinks), some of them at those pauses
    gaze   ← gaze towards the other

Lips need no change: they stay closed while their own track is silent. People nod and blink at pauses of the speaker far
more often than elsewhere (Dittmann & Llewellyn 1968; Nakano & Kitazawa 2010).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np
import torch

from flowportrait.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME, Sound
from flowportrait.media.mel import loudness_gain, normalize_loudness
from flowportrait.media.video import FPS
from flowportrait.rendering.motion_basis import BLINK, GAZE, HEAD, MotionBasis
from flowportrait.rendering.motion_filters import gaze_coefficients

# --- Tracks ---

NUM_SPEAKERS = 2
SECONDS_BETWEEN_TURNS = 0.3
"""Seconds between turns."""
_CROSSTALK = 10 ** (-9 / 20)
"""A voice from across the table arrives at least 9 dB quieter than at its own microphone (both levelled); people who
talk at the same time do not differ that much for long."""
_COMPARISON_FRAMES = 9
"""Frames over which loudness is compared, so that a pause between syllables does not count as the other's turn."""
_MIN_LOUDNESS = 1e-4


def build_speaker_tracks(recordings: Sequence[tuple[int, np.ndarray]], in_turn: bool = False) -> np.ndarray:
    """Place recordings on one track per speaker, at a common loudness and without crosstalk.

    Args:
        recordings: pairs of a speaker (0 or 1) and samples ``[n]`` at 16 kHz.
        in_turn: play the recordings one after the other instead of all from the start.

    Returns:
        Tracks ``[2, N]`` at 16 kHz.
    """
    return remove_crosstalk(_place_on_tracks(recordings, in_turn))


def mix_conversation_sound(
    recordings: Sequence[tuple[int, np.ndarray]], sounds: Sequence[Sound], in_turn: bool = False
) -> Sound:
    """Mix the sound that the video of a conversation plays.

    It has the highest sample rate of the recordings, and is stereo if one of them is.

    Args:
        recordings: as for ``build_speaker_tracks``.
        sounds: the same recordings with their own rate and channels.
        in_turn: as for ``build_speaker_tracks``.
    """
    rate = max(SAMPLE_RATE, *(sound.rate for sound in sounds))
    layout = "mono" if all(sound.layout == "mono" for sound in sounds) else "stereo"
    weight = _active_speaker_weight(_place_on_tracks(recordings, in_turn))
    total = round(weight.shape[1] * rate / SAMPLE_RATE)
    mixed = np.zeros((1 if layout == "mono" else 2, total), np.float32)
    starts = _start_samples(recordings, in_turn)
    for (speaker, samples), sound, start in zip(recordings, sounds, starts, strict=True):
        first = round(start * rate / SAMPLE_RATE)
        played = _resample(sound, rate, layout)[:, : total - first] * loudness_gain(samples)
        speech_samples = np.arange(first, first + played.shape[1]) * SAMPLE_RATE // rate
        mixed[:, first : first + played.shape[1]] += played * weight[speaker, speech_samples]
    return Sound(mixed, rate, layout)


def remove_crosstalk(levelled: np.ndarray) -> np.ndarray:
    """Mute each of the tracks ``[2, N]`` wherever the other one is more than 9 dB louder."""
    return (levelled * _active_speaker_weight(levelled)).astype(np.float32)


def _start_samples(recordings: Sequence[tuple[int, np.ndarray]], in_turn: bool) -> list[int]:
    """Return the sample (at 16 kHz) at which every recording starts."""
    lengths = [len(samples) + round(SECONDS_BETWEEN_TURNS * SAMPLE_RATE) if in_turn else 0 for _, samples in recordings]
    return [sum(lengths[:index]) for index in range(len(lengths))]


def _place_on_tracks(recordings: Sequence[tuple[int, np.ndarray]], in_turn: bool) -> np.ndarray:
    """Return the levelled recordings as tracks ``[2, N]``."""
    starts = _start_samples(recordings, in_turn)
    ends = [start + len(samples) for start, (_, samples) in zip(starts, recordings, strict=True)]
    result = np.zeros((NUM_SPEAKERS, max(ends)), np.float32)
    for start, end, (speaker, samples) in zip(starts, ends, recordings, strict=True):
        result[speaker, start:end] += normalize_loudness(samples)
    return result


def _active_speaker_weight(levelled: np.ndarray) -> np.ndarray:
    """Return the share, 0 to 1, of the track's own speaker in every sample of tracks ``[2, N]``."""
    frames = -(-levelled.shape[1] // SAMPLES_PER_FRAME)
    padded = np.zeros((NUM_SPEAKERS, frames * SAMPLES_PER_FRAME))
    padded[:, : levelled.shape[1]] = levelled
    loudness = np.sqrt((padded.reshape(NUM_SPEAKERS, frames, -1) ** 2).mean(2))
    # Imported here: it takes an eighth of a second, and one speaker needs none of it.
    from scipy.ndimage import maximum_filter1d

    nearby_peak = maximum_filter1d(loudness, _COMPARISON_FRAMES, axis=1) + _MIN_LOUDNESS
    is_active = (nearby_peak >= _CROSSTALK * nearby_peak[::-1]).repeat(SAMPLES_PER_FRAME, axis=1)
    # Fade over 40 ms where a track is muted or unmuted, because a hard cut would click.
    weight = np.stack(
        [np.convolve(row, np.full(SAMPLES_PER_FRAME, 1 / SAMPLES_PER_FRAME), "same") for row in is_active]
    )
    return weight[:, : levelled.shape[1]]


def _resample(sound: Sound, rate: int, layout: str) -> np.ndarray:
    """Return samples ``[C, N]`` of a sound at another rate and channel layout."""
    if (sound.rate, sound.layout) == (rate, layout):
        return sound.samples
    resampler = av.AudioResampler(format="flt", layout=layout, rate=rate)
    interleaved = np.ascontiguousarray(sound.samples.T, np.float32).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(interleaved, format="flt", layout=sound.layout)
    frame.sample_rate = sound.rate
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    channels = av.AudioLayout(layout).nb_channels
    return np.concatenate([part.to_ndarray().reshape(-1, channels) for part in frames]).T


# --- Listening ---

NOD_DEGREES, NOD_HERTZ, NOD_FRAMES = 4.0, 2.5, 20
NOD_SHARE = 0.6
"""Share of the other's pauses at which the listener nods."""
BLINK_SECONDS = (2.0, 5.0)
"""Shortest and longest time between blinks."""
BLINK_LIDS = 3.6 * torch.tensor([0.45, 1.0, 0.85, 0.45, 0.15])
"""Lid closure of a blink per frame, in standard deviations; as deep as the generator's own blinks."""
_FADE_FRAMES = 9
"""Frames over which listening behaviour fades in and out."""
_PAUSE_FRAMES = 5
"""Frames without speech that count as a pause."""


@dataclass(frozen=True)
class ListeningBehaviour:
    """Adds listening behaviour to the motion of one person.

    Attributes:
        toward: where the other person sits: -1 to the viewer's left, 1 to the right, 0 in front.
        gaze_degrees: how far the eyes turn towards the other person.
        seed: random seed of nods and blinks.
    """

    toward: float = 0.0
    gaze_degrees: float = 7.0
    seed: int = 0

    def __call__(self, motion: torch.Tensor, speaking: np.ndarray, other: np.ndarray) -> torch.Tensor:
        """Return motion with nods, blinks and gaze added while the person listens.

        Args:
            motion: ``[T, 30]`` of the person.
            speaking: speech gate ``[T]`` of the person, above zero while speaking.
            other: speech gate ``[T]`` of the other person.
        """
        rng = np.random.default_rng(self.seed)
        listening = (other > 0) & (speaking == 0)
        from scipy.ndimage import uniform_filter1d

        share = torch.from_numpy(uniform_filter1d(listening.astype(np.float32), _FADE_FRAMES))[:, None]
        result = motion.clone()
        result[:, HEAD] *= 1 - 0.5 * share
        result[:, GAZE] += share * gaze_coefficients(self.toward * self.gaze_degrees, 0.0)
        silent = speaking == 0
        pauses = [frame for frame in find_pauses(other) if silent[frame : frame + NOD_FRAMES].all()]
        nod_starts = [frame for frame in pauses if rng.random() < NOD_SHARE]
        for at in nod_starts:
            nod = nod_pitch()[: len(result) - at]
            result[at : at + len(nod), HEAD.start] += nod
        for at in self._blink_frames(silent, pauses, rng):
            lid = BLINK_LIDS[: len(result) - at, None]
            result[at : at + len(lid), BLINK] = torch.maximum(result[at : at + len(lid), BLINK], lid)
        return result

    def _blink_frames(self, silent: np.ndarray, pauses: list[int], rng: np.random.Generator) -> list[int]:
        frames, next_blink = [], 0
        for at in range(len(silent)):
            if silent[at] and (at >= next_blink or (at in pauses and at > next_blink - FPS)):
                if at:
                    frames.append(at)
                next_blink = at + round(FPS * rng.uniform(*BLINK_SECONDS))
            elif not silent[at]:
                # The generated motion of a speaker already blinks; the next added blink comes some time later.
                next_blink = max(next_blink, at + FPS)
        return frames


def find_pauses(speech: np.ndarray) -> list[int]:
    """Return the frames at which pauses begin in a speech gate ``[T]``."""
    spoken = speech > 0
    ends = np.flatnonzero(spoken[:-1] & ~spoken[1:]) + 1
    return [int(end) for end in ends if not spoken[end : end + _PAUSE_FRAMES].any()]


def nod_pitch() -> torch.Tensor:
    """Return the head pitch ``[20]`` of a nod in standard deviations: down and up twice, the second time less."""
    time = np.arange(NOD_FRAMES) / FPS
    down = (1 - np.cos(2 * np.pi * NOD_HERTZ * time)) / 2
    degrees = NOD_DEGREES * down * np.linspace(1, 0, NOD_FRAMES)
    return torch.from_numpy(np.radians(degrees)).float() / MotionBasis.load().head_std[0]
