"""A listener listens: the generator has learned speaking only, so what belongs to listening is laid over it.

    listening(t) = other speaks · self silent
    head   ← head · (1 − listening / 2)  +  nods where the other pauses
    lids   ← lids ∨ blinks, some of them at those pauses
    gaze   ← gaze towards the other

Lips need nothing: they rest while their own track is silent. People nod and blink where a speaker pauses far more than
elsewhere (Dittmann & Llewellyn 1968; Nakano & Kitazawa 2010).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import uniform_filter1d

from flowportrait.codec.basis import BLINK, GAZE, HEAD, MotionBasis
from flowportrait.codec.controls import gaze_coefficients
from flowportrait.media.video import FPS

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
