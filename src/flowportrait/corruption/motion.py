"""Corruptions of motion: damaged windows for preference pairs, and negative controls for whole clips.

    intact:  motion[s : s + T]  with  mel[s : s + T]           damaged: other motion with the same sound

Damage to a ``MotionWindow`` makes preference pairs without an annotator (the idea of SyncDPO, arXiv 2605.12179). Each
function takes the window, a strength in its own unit and a generator, and returns the damaged motion ``[T, 30]``; the
catalogue lists the aspects that it hurts. ``negative_controls`` returns motion of a whole clip that any sensible metric
must score below the real motion.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.signal import savgol_filter

from flowportrait.corruption.clips import interpolate_track
from flowportrait.errors import BadInput
from flowportrait.evaluation.motion_metrics import frame_rms
from flowportrait.rendering.motion_basis import BROWS, GAZE, HEAD, LOWER_FACE, MotionBasis, lip_pair_gaps

UPPER_FACE = slice(BROWS.start, GAZE.stop)
"""Brows, lids and gaze."""
CONTROL_DELAY = 5
"""Frames by which the negative control ``shifted`` is late."""


class MotionWindow(NamedTuple):
    """The window ``[start, start + frames)`` of a clip, and the material that a corruption may need.

    Attributes:
        motion: motion ``[N, 30]`` of the whole clip.
        loudness: loudness ``[N]`` of its sound.
        other: motion ``[M, 30]`` of another clip.
        start: first frame of the window.
        frames: its length T.
    """

    motion: np.ndarray
    loudness: np.ndarray
    other: np.ndarray
    start: int
    frames: int

    @property
    def intact(self) -> np.ndarray:
        """The undamaged motion of the window, ``[T, 30]``."""
        return self.motion[self.start : self.start + self.frames].copy()

    def at(self, times: np.ndarray) -> np.ndarray:
        """Return the motion ``[T, 30]`` at fractional frames ``[T]`` of the clip."""
        return interpolate_track(self.motion, times)


# --- Damage to windows -----------------------------------------------------------------------------------------------


def shift_motion(window: MotionWindow, frames: float, rng: np.random.Generator) -> np.ndarray:
    """Return real motion that is early or late by ``frames``, or by less where the clip is too short."""
    room_on_sides = (window.start, len(window.motion) - window.frames - window.start)
    amount = min(round(frames), max(room_on_sides))
    sides = [sign for sign, room in zip((-1, 1), room_on_sides, strict=True) if room >= amount]
    first = window.start + int(rng.choice(sides)) * amount
    return window.motion[first : first + window.frames].copy()


def warp_motion_time(window: MotionWindow, frames: float, rng: np.random.Generator) -> np.ndarray:
    """Play the middle of the window too early and too late by up to ``frames``; its ends stay in place."""
    phase = np.linspace(0, 2 * np.pi, window.frames)
    times = np.arange(window.frames) + rng.choice([-1, 1]) * frames * np.sin(phase)
    return window.at(window.start + np.maximum.accumulate(times.clip(0, window.frames - 1)))


def swap_motion_segments(window: MotionWindow, frames: float, rng: np.random.Generator) -> np.ndarray:
    """Exchange two neighbouring segments of ``frames`` frames."""
    size = min(round(frames), window.frames // 2)
    first = int(rng.integers(window.frames - 2 * size + 1))
    order = np.arange(window.frames)
    order[first : first + 2 * size] = np.roll(order[first : first + 2 * size], size)
    return window.intact[order]


def replace_speech(window: MotionWindow, share: float, rng: np.random.Generator) -> np.ndarray:
    """Replace the lower face by that of another clip over ``share`` of the window."""
    result, size = window.intact, round(share * window.frames)
    start = int(rng.integers(window.frames - size + 1))
    source = int(rng.integers(max(1, len(window.other) - size + 1)))
    replacement = window.other[source : source + size, LOWER_FACE]
    result[start : start + len(replacement), LOWER_FACE] = replacement
    return result


def follow_loudness(window: MotionWindow, share: float, rng: np.random.Generator) -> np.ndarray:
    """Mix in, by ``share``, lips that follow loudness alone along the first principal direction of the lower face."""
    result = window.intact
    lower = result[:, LOWER_FACE]
    centred = lower - lower.mean(0)
    main = np.linalg.svd(centred, full_matrices=False)[2][0]
    loud = window.loudness[window.start : window.start + window.frames]
    loud = (loud - loud.mean()) / max(float(loud.std()), 1e-6)
    jaw = lower.mean(0) + np.outer(loud * (centred @ main).std(), main)
    result[:, LOWER_FACE] = (1 - share) * lower + share * jaw
    return result


def freeze_upper_face(window: MotionWindow, share: float, rng: np.random.Generator) -> np.ndarray:
    """Hold lids, gaze and brows still for the first ``share`` of the window."""
    result, until = window.intact, round(share * window.frames)
    result[:until, UPPER_FACE] = result[0, UPPER_FACE]
    return result


def weaken_expression(window: MotionWindow, share: float, rng: np.random.Generator) -> np.ndarray:
    """Reduce every expression's deviation from its mean by ``share``."""
    result = window.intact
    for part in (LOWER_FACE, UPPER_FACE):
        mean = result[:, part].mean(0)
        result[:, part] = mean + (1 - share) * (result[:, part] - mean)
    return result


def exaggerate_expression(window: MotionWindow, share: float, rng: np.random.Generator) -> np.ndarray:
    """Increase every expression's deviation from its mean by ``share``."""
    return weaken_expression(window, -share, rng)


def weaken_head(window: MotionWindow, share: float, rng: np.random.Generator) -> np.ndarray:
    """Reduce the motion of the head by ``share``."""
    result = window.intact
    mean = result[:, HEAD].mean(0)
    result[:, HEAD] = mean + (1 - share) * (result[:, HEAD] - mean)
    return result


def weaken_all_but_lips(window: MotionWindow, share: float, rng: np.random.Generator) -> np.ndarray:
    """Reduce the motion of brows, eyes and head by ``share``; 1 is a photo with moving lips."""
    result = window.intact
    for part in (UPPER_FACE, HEAD):
        mean = result[:, part].mean(0)
        result[:, part] = mean + (1 - share) * (result[:, part] - mean)
    return result


def add_tremor(window: MotionWindow, size: float, rng: np.random.Generator) -> np.ndarray:
    """Add normal noise of ``size`` (in standard deviations of motion) to the head and half of that to the lips."""
    result = window.intact
    result[:, HEAD] += size * rng.normal(size=result[:, HEAD].shape)
    result[:, LOWER_FACE] += 0.5 * size * rng.normal(size=result[:, LOWER_FACE].shape)
    return result


def add_head_sway(window: MotionWindow, size: float, rng: np.random.Generator) -> np.ndarray:
    """Swing the head by ``size`` standard deviations at 2–4 Hz."""
    result, times = window.intact, np.arange(window.frames)[:, None] / 25
    rate, phase = rng.uniform(2, 4), rng.uniform(0, 2 * np.pi, 6)
    result[:, HEAD] += size * np.sin(2 * np.pi * rate * times + phase)
    return result


def add_stutter(window: MotionWindow, frames: float, rng: np.random.Generator) -> np.ndarray:
    """Hold the motion for ``frames`` frames and jump on, over and over."""
    hold = max(1, round(frames))
    times = np.arange(window.frames)
    return window.intact[times - (times + int(rng.integers(hold + 1))) % (hold + 1) * (times >= hold)]


def add_head_jump(window: MotionWindow, size: float, rng: np.random.Generator) -> np.ndarray:
    """Let the head jump to another pose by ``size`` standard deviations and stay there."""
    result, jump_frame = window.intact, int(rng.integers(window.frames // 4, 3 * window.frames // 4))
    result[jump_frame:, HEAD] += size * rng.choice([-1, 1], 6)
    return result


def smooth_lips(window: MotionWindow, frames: float, rng: np.random.Generator) -> np.ndarray:
    """Average the lips over ``frames`` frames: in time with the sound, but hardly articulated."""
    result, width = window.intact, 2 * (round(frames) // 2) + 1
    if width >= 3:
        result[:, LOWER_FACE] = savgol_filter(
            result[:, LOWER_FACE], min(width, window.frames - 1 + window.frames % 2), 1, axis=0
        )
    return result


# --- Negative controls of whole clips --------------------------------------------------------------------------------


def still_motion(motion: torch.Tensor, audio: np.ndarray) -> torch.Tensor:
    """Return motion of zeros, the portrait as it is."""
    return torch.zeros_like(motion)


def loudness_driven_jaw(motion: torch.Tensor, audio: np.ndarray) -> torch.Tensor:
    """Return the motion with a mouth that follows the loudness of the sound ``[N]`` (16 kHz) along one direction.

    Its opening has the mean and standard deviation of the real one; head and upper face stay as they are.
    """
    axis = _opening_axis()
    real = motion[:, LOWER_FACE] @ axis
    loud = torch.from_numpy(frame_rms(audio, len(motion), 1.0)).float()
    spread = loud.std().clamp_min(1e-6)
    driven = real.mean() + (loud - loud.mean()) / spread * real.std()
    result = motion.clone()
    result[:, LOWER_FACE] = motion[:, LOWER_FACE].mean(0) + (driven - real.mean())[:, None] * axis
    return result


def delayed_motion(motion: torch.Tensor, audio: np.ndarray, frames: int = CONTROL_DELAY) -> torch.Tensor:
    """Return the motion delayed by ``frames``; the beginning is played backwards first, so there is no jump.

    Raises:
        BadInput: if the clip is not longer than ``frames``.
    """
    if len(motion) <= frames:
        raise BadInput(f"A clip of {len(motion)} frames is too short to be shifted by {frames}.")
    return torch.cat([motion[1 : frames + 1].flip(0), motion[:-frames]])


def motion_of_other_sentence(motion: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the motion of another sentence, as long as ``motion``.

    ``other`` ``[S, 30]`` is played forwards and backwards in turn until it is long enough.
    """
    pendulum = torch.cat([other, other.flip(0)[1:-1]]) if len(other) > 2 else other
    rounds = -(-len(motion) // len(pendulum))
    return pendulum.repeat(rounds, 1)[: len(motion)]


def negative_controls(motion: torch.Tensor, audio: np.ndarray, other: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return motion that must score below the real motion of a clip, by name of the control.

    Args:
        motion: the clip's real motion ``[T, 30]``.
        audio: its sound ``[N]``, 16 kHz.
        other: the motion ``[S, 30]`` of another sentence.
    """
    return {
        "still": still_motion(motion, audio),
        "loudness jaw": loudness_driven_jaw(motion, audio),
        f"shifted by {CONTROL_DELAY}": delayed_motion(motion, audio),
        "other sentence": motion_of_other_sentence(motion, other),
    }


def _opening_axis() -> torch.Tensor:
    """Return the unit direction ``[16]`` of lower-face motion that opens the lips most."""
    basis = MotionBasis.load()
    opening = lip_pair_gaps(basis.directions[LOWER_FACE]).mean(-1)
    return opening / opening.norm()
