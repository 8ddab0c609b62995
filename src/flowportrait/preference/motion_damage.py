"""Rule-based damage to a face in motion, for pairs that need no annotator (SyncDPO, arXiv 2605.12179, for the idea).

    intact:  motion[s : s + T]  under  mel[s : s + T]           damaged: another motion under the same sound

Every damage takes the whole clip, where the window starts, a strength in its own unit and a generator, and gives the
window ``[T, 30]``. It says which aspects it hurts; the others stay a tie.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from scipy.signal import savgol_filter

from flowportrait.codec.basis import BROWS, GAZE, HEAD, LOWER
from flowportrait.preference.pairs import Aspect

UPPER = slice(BROWS.start, GAZE.stop)


class Window(NamedTuple):
    """motion ``[N, 30]`` of the whole clip, loudness ``[N]`` of its sound, other ``[M, 30]`` another clip; the window
    is ``[start, start + frames)``."""

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
        return _at(self.motion, times)


class Damage(Protocol):
    """See the module."""

    def __call__(self, window: Window, strength: float, rng: np.random.Generator, /) -> np.ndarray: ...


class MotionDamage(NamedTuple):
    """subtle and coarse strengths in ``unit``; hurts: aspects in which the intact clip is better."""

    damage: Damage
    unit: str
    subtle: float
    coarse: float
    hurts: tuple[Aspect, ...]


def shift(window: Window, frames: float, rng: np.random.Generator) -> np.ndarray:
    """Lips early or late by ``frames``, with motion that was really there; by less where the clip is shorter."""
    rooms = (window.start, len(window.motion) - window.frames - window.start)
    amount = min(round(frames), max(rooms))
    sides = [sign for sign, room in zip((-1, 1), rooms, strict=True) if room >= amount]
    first = window.start + int(rng.choice(sides)) * amount
    return window.motion[first : first + window.frames].copy()


def time_warp(window: Window, frames: float, rng: np.random.Generator) -> np.ndarray:
    """The middle of the window plays too early and too late by up to ``frames``; its ends stay."""
    phase = np.linspace(0, 2 * np.pi, window.frames)
    times = np.arange(window.frames) + rng.choice([-1, 1]) * frames * np.sin(phase)
    return window.at(window.start + np.maximum.accumulate(times.clip(0, window.frames - 1)))


def swapped_segments(window: Window, frames: float, rng: np.random.Generator) -> np.ndarray:
    """Two neighbouring pieces of ``frames`` frames exchanged."""
    size = min(round(frames), window.frames // 2)
    first = int(rng.integers(window.frames - 2 * size + 1))
    order = np.arange(window.frames)
    order[first : first + 2 * size] = np.roll(order[first : first + 2 * size], size)
    return window.intact[order]


def other_speech(window: Window, share: float, rng: np.random.Generator) -> np.ndarray:
    """Lower face of another clip over ``share`` of the window."""
    result, size = window.intact, round(share * window.frames)
    start = int(rng.integers(window.frames - size + 1))
    source = int(rng.integers(max(1, len(window.other) - size + 1)))
    taken = window.other[source : source + size, LOWER]
    result[start : start + len(taken), LOWER] = taken
    return result


def loudness_jaw(window: Window, share: float, rng: np.random.Generator) -> np.ndarray:
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


def frozen_eyes(window: Window, share: float, rng: np.random.Generator) -> np.ndarray:
    """Lids, gaze and brows stand still for ``share`` of the window, from its beginning."""
    result, until = window.intact, round(share * window.frames)
    result[:until, UPPER] = result[0, UPPER]
    return result


def dull(window: Window, share: float, rng: np.random.Generator) -> np.ndarray:
    """Every expression weaker by ``share`` of its deviation from its own mean."""
    result = window.intact
    for part in (LOWER, UPPER):
        mean = result[:, part].mean(0)
        result[:, part] = mean + (1 - share) * (result[:, part] - mean)
    return result


def grimace(window: Window, share: float, rng: np.random.Generator) -> np.ndarray:
    """Every expression stronger by ``share`` of its deviation from its own mean: more is not always better."""
    return dull(window, -share, rng)


def stiff_head(window: Window, share: float, rng: np.random.Generator) -> np.ndarray:
    """The head's motion weaker by ``share``: what holds still has nothing to be smooth about."""
    result = window.intact
    mean = result[:, HEAD].mean(0)
    result[:, HEAD] = mean + (1 - share) * (result[:, HEAD] - mean)
    return result


def dead_face(window: Window, share: float, rng: np.random.Generator) -> np.ndarray:
    """A photo with moving lips: brows, eyes and head weaker by ``share``; at 1 they stand still."""
    result = window.intact
    for part in (UPPER, HEAD):
        mean = result[:, part].mean(0)
        result[:, part] = mean + (1 - share) * (result[:, part] - mean)
    return result


def jitter(window: Window, size: float, rng: np.random.Generator) -> np.ndarray:
    """Head and lips tremble by a normal ``size`` (standard deviations), anew in every frame."""
    result = window.intact
    result[:, HEAD] += size * rng.normal(size=result[:, HEAD].shape)
    result[:, LOWER] += 0.5 * size * rng.normal(size=result[:, LOWER].shape)
    return result


def sway(window: Window, size: float, rng: np.random.Generator) -> np.ndarray:
    """The head swings by ``size`` at 2–4 Hz, as nobody's does."""
    result, times = window.intact, np.arange(window.frames)[:, None] / 25
    rate, phase = rng.uniform(2, 4), rng.uniform(0, 2 * np.pi, 6)
    result[:, HEAD] += size * np.sin(2 * np.pi * rate * times + phase)
    return result


def stutter(window: Window, frames: float, rng: np.random.Generator) -> np.ndarray:
    """Motion stops for ``frames`` frames and jumps on, again and again."""
    held = max(1, round(frames))
    times = np.arange(window.frames)
    return window.intact[times - (times + int(rng.integers(held + 1))) % (held + 1) * (times >= held)]


def jump(window: Window, size: float, rng: np.random.Generator) -> np.ndarray:
    """The whole face jumps to another pose by ``size`` and stays there."""
    result, when = window.intact, int(rng.integers(window.frames // 4, 3 * window.frames // 4))
    result[when:, HEAD] += size * rng.choice([-1, 1], 6)
    return result


def smeared(window: Window, frames: float, rng: np.random.Generator) -> np.ndarray:
    """Lips averaged over ``frames`` frames: in time with the sound, but hardly articulated."""
    result, width = window.intact, 2 * (round(frames) // 2) + 1
    if width >= 3:
        result[:, LOWER] = savgol_filter(result[:, LOWER], min(width, window.frames - 1 + window.frames % 2), 1, axis=0)
    return result


def _at(track: np.ndarray, times: np.ndarray) -> np.ndarray:
    times = times.clip(0, len(track) - 1)
    low = np.floor(times).astype(int)
    high = (low + 1).clip(max=len(track) - 1)
    share = (times - low)[:, None]
    return (1 - share) * track[low] + share * track[high]


LEARNED: dict[str, MotionDamage] = {
    "shift": MotionDamage(shift, "frames", 2, 8, ("sync",)),
    "time-warp": MotionDamage(time_warp, "frames", 2, 5, ("sync",)),
    "other speech": MotionDamage(other_speech, "share", 0.5, 1, ("sync",)),
    "frozen eyes": MotionDamage(frozen_eyes, "share", 0.6, 1, ("expression",)),
    "dull": MotionDamage(dull, "share", 0.4, 1, ("expression",)),
    "grimace": MotionDamage(grimace, "share", 0.8, 3, ("expression",)),
    "jitter": MotionDamage(jitter, "deviations", 0.03, 0.3, ("motion",)),
    "sway": MotionDamage(sway, "deviations", 0.1, 0.6, ("motion",)),
    "stiff head": MotionDamage(stiff_head, "share", 0.6, 1, ("motion",)),
}
"""What the reward model learns from."""

UNSEEN: dict[str, MotionDamage] = {
    "swapped segments": MotionDamage(swapped_segments, "frames", 4, 10, ("sync",)),
    "loudness jaw": MotionDamage(loudness_jaw, "share", 0.6, 1, ("sync",)),
    "dead face": MotionDamage(dead_face, "share", 0.5, 1, ("expression", "motion")),
    "smeared lips": MotionDamage(smeared, "frames", 5, 15, ("expression",)),
    "stutter": MotionDamage(stutter, "frames", 1, 4, ("motion",)),
    "jump": MotionDamage(jump, "deviations", 0.3, 1.5, ("motion",)),
}
"""What it is only measured on."""
