"""What is done to motion between generator and renderer: smoothing, joining of chunks, controls.

Motion as it is delivered: what is done to the chunks that a generator draws.

    head, brows   second-order Butterworth low-pass, causal: 3 Hz for the head, 5 Hz for the brows, never on lips and
                  lids (real talking heads keep 97 % of their motion power below 6 Hz); at most two frames late
    head          numbers beyond 2 standard deviations are bent towards 3.5, past which hardly one in a hundred frames
                  of real speakers lies
    lower face    times the speech gate: a mouth is closed while nobody speaks
    borders       x'[t] = x[t] + a (x[t−1] − 2 x[t] + x[t+1]) for the two frames on either side of a border between
                  chunks, on lips, lids and gaze. A chunk begins where the last one ended, but not at its speed: as they
                  are drawn, lips and lids start anew six times a second, which is seen as trembling. With a = 0.15 the
                  acceleration at borders is what it is inside chunks (``benchmarks/easing.py``)

``Delivery`` does so for streams in step, ``deliver`` for whole sequences; both give the same.

What a person may turn up or down in a performance, each leaving the lips' opening exactly as it was.

blink, gaze, head     their own coordinates:  motion[part] · scale (+ offset)
expression            brows, and the part N of the lower face that opens and closes no lips (smile, width):
                      motion + (scale − 1) · motion N,     N = projection on the null space of the lip gap
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.rendering.motion_basis import BLINK, BROWS, GAZE, HEAD, LOWER, MOTION_DIM, MotionBasis, lip_gap

_FREE, _FARTHEST = 2.0, 3.5


def deliver(motion: torch.Tensor, chunk: int, share: float, gates: torch.Tensor | None = None) -> torch.Tensor:
    """Deliver whole sequences ``[B, T, 30]`` drawn in chunks of so many frames; ``share`` is a, gates ``[B, T]`` those
    of speech."""
    motion = MotionLowPass()(motion)
    if gates is not None:
        motion[..., LOWER] *= gates[..., None]
    return join_chunks(motion, chunk, share)


class Delivery:
    """``deliver`` for streams in step, chunk by chunk; the last frame of a chunk waits for the next chunk."""

    def __init__(self, chunk: int, share: float) -> None:
        self.low_pass, self.joiner = MotionLowPass(), ChunkJoiner(share if chunk > 1 else 0.0)

    def __call__(self, motion: torch.Tensor, gates: torch.Tensor, frames: int | None = None) -> torch.Tensor:
        """Take the next chunk ``[B, n, 30]`` with its speech gates ``[B, n]``, of which the first ``frames`` count;
        returns the frames that are ready ``[B, m, 30]``."""
        motion = self.low_pass(motion)
        motion[..., LOWER] *= gates[..., None]
        return self.joiner(motion[:, :frames])

    def finish(self) -> torch.Tensor:
        """The frame still held back ``[B, ≤ 1, 30]``."""
        return self.joiner.finish()

    def state(self) -> dict[str, Any]:
        """Where the streams stand."""
        return {"low_pass": vars(self.low_pass), "joiner": vars(self.joiner)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where other streams stood."""
        for part, own in state.items():
            vars(getattr(self, part)).update(own)


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


class MotionLowPass:
    """The low-pass and the bounds of the head for one stream of motion, or a batch of streams in step; its state runs
    on from call to call."""

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


def join_chunks(motion: torch.Tensor, chunk: int, share: float) -> torch.Tensor:
    """Smooth the borders between chunks of so many frames of motion ``[B, T, 30]``."""
    at = [t for t in range(1, motion.shape[1] - 1) if _beside_border(t, chunk)]
    bend = motion[:, [t - 1 for t in at]] - 2 * motion[:, at] + motion[:, [t + 1 for t in at]]
    result = motion.clone()
    result[:, at] += share * bend * _smoothed(motion)
    return result


class ChunkJoiner:
    """``join_chunks`` for streams in step: the last frame of a chunk is held back until the next chunk is there."""

    def __init__(self, share: float) -> None:
        self.share = share
        self._held: torch.Tensor | None = None

    def __call__(self, chunk: torch.Tensor) -> torch.Tensor:
        """Take the next frames ``[..., n, 30]``; returns those that are ready: the one held back, and all of these but
        the last."""
        held = chunk[..., :0, :] if self._held is None else self._held
        known = torch.cat([held, chunk], -2)
        ready, first = known.clone(), held.shape[-2]
        for t in (first - 1, first):
            if first and 0 < t < known.shape[-2] - 1:
                bend = known[..., t - 1, :] - 2 * known[..., t, :] + known[..., t + 1, :]
                ready[..., t, :] += self.share * bend * _smoothed(known)
        returned = max(first - 1, 0)
        self._held = known[..., -2:, :]
        return ready[..., returned:-1, :]

    def finish(self) -> torch.Tensor:
        """The frame still held back ``[..., ≤ 1, 30]``."""
        return torch.zeros(0, MOTION_DIM) if self._held is None else self._held[..., -1:, :]


def _beside_border(t: int, chunk: int) -> bool:
    return chunk > 1 and ((t % chunk == 0) or (t % chunk == chunk - 1))


def _smoothed(like: torch.Tensor) -> torch.Tensor:
    """One for the numbers whose borders are smoothed ``[30]``."""
    numbers = like.new_zeros(MOTION_DIM)
    for part in (LOWER, BLINK, GAZE):
        numbers[part] = 1
    return numbers


_LARGEST_SCALE = 3.0
LARGEST_GAZE = 30.0

_EYEBALL = 12 / 90
"""Radius of an eyeball in outer-eye-corner distances (about 12 and 90 mm)."""

_IRISES = (468, 473)


@dataclass(frozen=True)
class Controls:
    """Scales (1: as performed, 0: not at all) and where the eyes look, in degrees from straight ahead.

    blink: depth of blinks; head_motion: nods and turns; expression_scale: brows and smiles; gaze: (to the viewer's
    right, up), added to the small eye movements of the performance.
    """

    blink: float = 1.0
    head_motion: float = 1.0
    expression_scale: float = 1.0
    gaze: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for name in ("blink", "head_motion", "expression_scale"):
            value = getattr(self, name)
            if not 0 <= value <= _LARGEST_SCALE:
                raise BadInput(f"{name}={value} is not possible: give a number from 0 to {_LARGEST_SCALE:g}.")
        if not all(math.isfinite(angle) and abs(angle) <= LARGEST_GAZE for angle in self.gaze):
            raise BadInput(f"gaze={self.gaze} is not possible: give degrees within ±{LARGEST_GAZE:g}.")

    def __call__(self, motion: torch.Tensor) -> torch.Tensor:
        """Motion ``[..., 30]`` as controlled; a new tensor."""
        result = motion.clone()
        result[..., BROWS] *= self.expression_scale
        result[..., LOWER] += (self.expression_scale - 1) * (motion[..., LOWER] @ lip_free())
        result[..., BLINK] *= self.blink
        result[..., HEAD] *= self.head_motion
        result[..., GAZE] += gaze_coefficients(*self.gaze)
        return result


@lru_cache(maxsize=1)
def lip_free() -> torch.Tensor:
    """Projection ``[16, 16]`` of lower-face motion on what changes none of the nine lip gaps."""
    gap = lip_gap(MotionBasis.load().directions[LOWER]).double()
    return (torch.eye(gap.shape[0], dtype=torch.float64) - gap @ torch.linalg.pinv(gap)).float()


def gaze_coefficients(right: float, up: float) -> torch.Tensor:
    """Gaze ``[2]`` in standard deviations for eyes turned by degrees to the viewer's right and up:
    the iris moves by sin(angle) of the eyeball's radius."""
    per_std = MotionBasis.load().directions[GAZE][:, _IRISES, :2].mean(1)
    wanted = _EYEBALL * torch.tensor([math.sin(math.radians(right)), -math.sin(math.radians(up))])
    return torch.linalg.solve(per_std.T, wanted)
