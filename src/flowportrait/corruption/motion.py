"""Damage to motion.

    intact:  motion[s : s + T]  under  mel[s : s + T]           damaged: another motion under the same sound

Damage of a ``MotionWindow`` makes preference pairs that need no annotator (the idea: SyncDPO, arXiv 2605.12179). It
takes the window, a strength in its own unit and a generator, and returns the motion ``[T, 30]``; the catalogue says
which aspects it hurts. ``negative_controls`` are for whole clips.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.signal import savgol_filter

from flowportrait.corruption.clips import interpolate
from flowportrait.errors import BadInput
from flowportrait.evaluation.motion_metrics import loudness
from flowportrait.rendering.motion_basis import BROWS, GAZE, HEAD, LOWER, MotionBasis, lip_gap

UPPER = slice(BROWS.start, GAZE.stop)
CONTROL_DELAY = 5
"""Frames by which the control ``shifted`` is late."""


class MotionWindow(NamedTuple):
    """The window ``[start, start + frames)`` of a clip, with all that damage may take from elsewhere.

    motion ``[N, 30]`` of the whole clip, loudness ``[N]`` of its sound, other ``[M, 30]`` another clip's motion.
    """

    motion: np.ndarray
    loudness: np.ndarray
    other: np.ndarray
    start: int
    frames: int

    @property
    def intact(self) -> np.ndarray:
        """The window as it was, ``[T, 30]``."""
        return self.motion[self.start : self.start + self.frames].copy()

    def at(self, times: np.ndarray) -> np.ndarray:
        """Motion at fractional frames of the clip ``[T]``."""
        return interpolate(self.motion, times)


def shift(window: MotionWindow, frames: float, rng: np.random.Generator) -> np.ndarray:
    """Lips early or late by ``frames``, with motion that was really there; by less where the clip is shorter."""
    rooms = (window.start, len(window.motion) - window.frames - window.start)
    amount = min(round(frames), max(rooms))
    sides = [sign for sign, room in zip((-1, 1), rooms, strict=True) if room >= amount]
    first = window.start + int(rng.choice(sides)) * amount
    return window.motion[first : first + window.frames].copy()


def warp_time(window: MotionWindow, frames: float, rng: np.random.Generator) -> np.ndarray:
    """The middle of the window plays too early and too late by up to ``frames``; its ends stay."""
    phase = np.linspace(0, 2 * np.pi, window.frames)
    times = np.arange(window.frames) + rng.choice([-1, 1]) * frames * np.sin(phase)
    return window.at(window.start + np.maximum.accumulate(times.clip(0, window.frames - 1)))


def swap_segments(window: MotionWindow, frames: float, rng: np.random.Generator) -> np.ndarray:
    """Two neighbouring pieces of ``frames`` frames exchanged."""
    size = min(round(frames), window.frames // 2)
    first = int(rng.integers(window.frames - 2 * size + 1))
    order = np.arange(window.frames)
    order[first : first + 2 * size] = np.roll(order[first : first + 2 * size], size)
    return window.intact[order]


def replace_speech(window: MotionWindow, share: float, rng: np.random.Generator) -> np.ndarray:
    """Lower face of another clip over ``share`` of the window."""
    result, size = window.intact, round(share * window.frames)
    start = int(rng.integers(window.frames - size + 1))
    source = int(rng.integers(max(1, len(window.other) - size + 1)))
    taken = window.other[source : source + size, LOWER]
    result[start : start + len(taken), LOWER] = taken
    return result


def follow_loudness(window: MotionWindow, share: float, rng: np.random.Generator) -> np.ndarray:
    """Lips that follow loudness alone along their own main direction, mixed in by ``share``."""
    result = window.intact
    lower = result[:, LOWER]
    centred = lower - lower.mean(0)
    main = np.linalg.svd(centred, full_matrices=False)[2][0]
    loud = window.loudness[window.start : window.start + window.frames]
    loud = (loud - loud.mean()) / max(float(loud.std()), 1e-6)
    jaw = lower.mean(0) + np.outer(loud * (centred @ main).std(), main)
    result[:, LOWER] = (1 - share) * lower + share * jaw
    return result


def freeze_eyes(window: MotionWindow, share: float, rng: np.random.Generator) -> np.ndarray:
    """Lids, gaze and brows stand still for ``share`` of the window, from its beginning."""
    result, until = window.intact, round(share * window.frames)
    result[:until, UPPER] = result[0, UPPER]
    return result


def weaken_expression(window: MotionWindow, share: float, rng: np.random.Generator) -> np.ndarray:
    """Every expression weaker by ``share`` of its deviation from its own mean."""
    result = window.intact
    for part in (LOWER, UPPER):
        mean = result[:, part].mean(0)
        result[:, part] = mean + (1 - share) * (result[:, part] - mean)
    return result


def exaggerate_expression(window: MotionWindow, share: float, rng: np.random.Generator) -> np.ndarray:
    """Every expression stronger by ``share`` of its deviation from its own mean."""
    return weaken_expression(window, -share, rng)


def weaken_head(window: MotionWindow, share: float, rng: np.random.Generator) -> np.ndarray:
    """The head's motion weaker by ``share``."""
    result = window.intact
    mean = result[:, HEAD].mean(0)
    result[:, HEAD] = mean + (1 - share) * (result[:, HEAD] - mean)
    return result


def weaken_all_but_lips(window: MotionWindow, share: float, rng: np.random.Generator) -> np.ndarray:
    """A photo with moving lips: brows, eyes and head weaker by ``share``; at 1 they stand still."""
    result = window.intact
    for part in (UPPER, HEAD):
        mean = result[:, part].mean(0)
        result[:, part] = mean + (1 - share) * (result[:, part] - mean)
    return result


def jitter(window: MotionWindow, size: float, rng: np.random.Generator) -> np.ndarray:
    """Head and lips tremble by a normal ``size`` (standard deviations), anew in every frame."""
    result = window.intact
    result[:, HEAD] += size * rng.normal(size=result[:, HEAD].shape)
    result[:, LOWER] += 0.5 * size * rng.normal(size=result[:, LOWER].shape)
    return result


def sway(window: MotionWindow, size: float, rng: np.random.Generator) -> np.ndarray:
    """The head swings by ``size`` at 2–4 Hz."""
    result, times = window.intact, np.arange(window.frames)[:, None] / 25
    rate, phase = rng.uniform(2, 4), rng.uniform(0, 2 * np.pi, 6)
    result[:, HEAD] += size * np.sin(2 * np.pi * rate * times + phase)
    return result


def stutter(window: MotionWindow, frames: float, rng: np.random.Generator) -> np.ndarray:
    """Motion stops for ``frames`` frames and jumps on, again and again."""
    held = max(1, round(frames))
    times = np.arange(window.frames)
    return window.intact[times - (times + int(rng.integers(held + 1))) % (held + 1) * (times >= held)]


def jump(window: MotionWindow, size: float, rng: np.random.Generator) -> np.ndarray:
    """The whole face jumps to another pose by ``size`` and stays there."""
    result, when = window.intact, int(rng.integers(window.frames // 4, 3 * window.frames // 4))
    result[when:, HEAD] += size * rng.choice([-1, 1], 6)
    return result


def smooth_lips(window: MotionWindow, frames: float, rng: np.random.Generator) -> np.ndarray:
    """Lips averaged over ``frames`` frames: in time with the sound, but hardly articulated."""
    result, width = window.intact, 2 * (round(frames) // 2) + 1
    if width >= 3:
        result[:, LOWER] = savgol_filter(result[:, LOWER], min(width, window.frames - 1 + window.frames % 2), 1, axis=0)
    return result


def still_motion(motion: torch.Tensor, audio: np.ndarray) -> torch.Tensor:
    """The portrait as it is: no motion at all."""
    return torch.zeros_like(motion)


def loudness_driven_jaw(motion: torch.Tensor, audio: np.ndarray) -> torch.Tensor:
    """Head and upper face as they were; the mouth opens and shuts along one direction as the sound (16 kHz
    ``[N]``) gets louder and softer, as far as it really did."""
    axis = _opening_axis()
    real = motion[:, LOWER] @ axis
    loud = torch.from_numpy(loudness(audio, len(motion), 1.0)).float()
    spread = loud.std().clamp_min(1e-6)
    driven = real.mean() + (loud - loud.mean()) / spread * real.std()
    result = motion.clone()
    result[:, LOWER] = motion[:, LOWER].mean(0) + (driven - real.mean())[:, None] * axis
    return result


def late_motion(motion: torch.Tensor, audio: np.ndarray, frames: int = CONTROL_DELAY) -> torch.Tensor:
    """The real motion, late by ``frames``; the beginning continues backwards, so there is no jump."""
    if len(motion) <= frames:
        raise BadInput(f"A clip of {len(motion)} frames is too short to be shifted by {frames}.")
    return torch.cat([motion[1 : frames + 1].flip(0), motion[:-frames]])


def other_sentence(motion: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The real motion ``[S, 30]`` of another sentence, to and fro until it is long enough."""
    there_and_back = torch.cat([other, other.flip(0)[1:-1]]) if len(other) > 2 else other
    rounds = -(-len(motion) // len(there_and_back))
    return there_and_back.repeat(rounds, 1)[: len(motion)]


def negative_controls(motion: torch.Tensor, audio: np.ndarray, other: torch.Tensor) -> dict[str, torch.Tensor]:
    """Motion of one clip that must score below the real one, by name.

    Args:
        motion: the clip's real motion ``[T, 30]``.
        audio: its sound ``[N]``, 16 kHz.
        other: the motion ``[S, 30]`` of another sentence.
    """
    return {
        "still": still_motion(motion, audio),
        "loudness jaw": loudness_driven_jaw(motion, audio),
        f"shifted by {CONTROL_DELAY}": late_motion(motion, audio),
        "other sentence": other_sentence(motion, other),
    }


def _opening_axis() -> torch.Tensor:
    """Unit direction ``[16]`` of lower-face motion that opens the lips most."""
    basis = MotionBasis.load()
    opening = lip_gap(basis.directions[LOWER]).mean(-1)
    return opening / opening.norm()
