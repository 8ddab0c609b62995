"""Calm head and brows: a causal low-pass on what may lag a little, never on lips and lids; and a head that stays
where heads stay.

Second-order Butterworth, 3 Hz for the head (real talking heads keep 97 % of their motion power below 6 Hz) and
5 Hz for the brows; about two frames late at most. Head numbers beyond 2 standard deviations are bent towards 3.5,
past which hardly one in a hundred frames of real speakers lies. State runs on from call to call, so streamed equals
whole.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.signal import butter, sosfilt, sosfilt_zi

from flowportrait.codec.basis import BROWS, HEAD
from flowportrait.media.video import FPS

_FREE, _FARTHEST = 2.0, 3.5

_BANDS = ((HEAD, butter(2, 3.0, fs=FPS, output="sos")), (BROWS, butter(2, 5.0, fs=FPS, output="sos")))


class Calm:
    """Filter for one stream of motion (or a batch of streams in step)."""

    def __init__(self) -> None:
        self._state: list[np.ndarray] | None = None

    def __call__(self, motion: torch.Tensor) -> torch.Tensor:
        """Motion ``[B, T, 30]``, filtered; the first call starts as if its first frame had always been there."""
        track = motion.numpy()
        if self._state is None:
            self._state = [
                sosfilt_zi(sos)[:, None, :, None] * track[None, :, None, 0, part] for part, sos in _BANDS
            ]
        result = track.copy()
        for band, (part, sos) in enumerate(_BANDS):
            result[..., part], self._state[band] = sosfilt(sos, track[..., part], axis=1, zi=self._state[band])
        result[..., HEAD] = _within(result[..., HEAD])
        return torch.from_numpy(result)


def _within(head: np.ndarray) -> np.ndarray:
    """The same up to ``_FREE`` either way, smoothly never beyond ``_FARTHEST``."""
    room = _FARTHEST - _FREE
    beyond = np.maximum(np.abs(head) - _FREE, 0)
    return np.sign(head) * (np.minimum(np.abs(head), _FREE) + room * np.tanh(beyond / room))
