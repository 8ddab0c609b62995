"""Calm head and brows: a causal low-pass on what may lag a little, never on lips and lids; and a head that stays
where heads stay.

Second-order Butterworth, 3 Hz for the head (real talking heads keep 97 % of their motion power below 6 Hz) and
5 Hz for the brows; about two frames late at most. Head numbers beyond 2 standard deviations are bent towards 3.5,
past which hardly one in a hundred frames of real speakers lies. State runs on from call to call, so streamed equals
whole.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from flowportrait.codec.basis import BROWS, HEAD

_FREE, _FARTHEST = 2.0, 3.5


class Biquad(NamedTuple):
    """A second-order section: y ← b₀ x + z₀,  z₀ ← b₁ x − a₁ y + z₁,  z₁ ← b₂ x − a₂ y.

    As ``scipy.signal.butter(2, cutoff, fs=25, output="sos")`` and ``sosfilt_zi`` give it; scipy's own takes longer to
    import than a second of motion takes to draw.
    """

    numerator: tuple[float, float, float]
    feedback: tuple[float, float]
    settled: tuple[float, float]
    """State after a long time of ones."""

    def begin(self, first: np.ndarray) -> np.ndarray:
        """State ``[2, B, C]`` as if values ``first`` ``[B, C]`` had always been there."""
        return np.stack([np.float64(z) * first for z in self.settled])

    def run(self, track: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Filter ``track`` ``[B, T, C]``; ``state`` is brought to its end in place."""
        (b0, b1, b2), (a1, a2) = self.numerator, self.feedback
        result = np.empty(track.shape)
        for frame, x in enumerate(np.moveaxis(track, 1, 0).astype(np.float64)):
            y = b0 * x + state[0]
            state[0] = b1 * x - a1 * y + state[1]
            state[1] = b2 * x - a2 * y
            result[:, frame] = y
        return result


HEAD_3_HZ = Biquad(
    (0.09131490043583196, 0.18262980087166392, 0.09131490043583196),
    (-0.9824057931083952, 0.34766539485172315),
    (0.9086850995641673, -0.256350494415891),
)
BROWS_5_HZ = Biquad(
    (0.20657208382614792, 0.41314416765229584, 0.20657208382614792),
    (-0.3695273773512414, 0.19581571265583306),
    (0.793427916173852, 0.01075637117031485),
)
_BANDS = ((HEAD, HEAD_3_HZ), (BROWS, BROWS_5_HZ))


class Calm:
    """Filter for one stream of motion (or a batch of streams in step)."""

    def __init__(self) -> None:
        self._state: list[np.ndarray] | None = None

    def __call__(self, motion: torch.Tensor) -> torch.Tensor:
        """Motion ``[B, T, 30]``, filtered; the first call starts as if its first frame had always been there."""
        track = motion.numpy()
        if self._state is None:
            self._state = [biquad.begin(track[:, 0, part]) for part, biquad in _BANDS]
        result = track.copy()
        for (part, biquad), state in zip(_BANDS, self._state, strict=True):
            result[..., part] = biquad.run(track[..., part], state)
        result[..., HEAD] = _within(result[..., HEAD])
        return torch.from_numpy(result)


def _within(head: np.ndarray) -> np.ndarray:
    """The same up to ``_FREE`` either way, smoothly never beyond ``_FARTHEST``."""
    room = _FARTHEST - _FREE
    beyond = np.maximum(np.abs(head) - _FREE, 0)
    return np.sign(head) * (np.minimum(np.abs(head), _FREE) + room * np.tanh(beyond / room))
