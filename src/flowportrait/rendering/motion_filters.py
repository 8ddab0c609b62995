"""What is done to motion between generator and renderer: smoothing, joining of chunks, and user controls.

    head, brows   second-order Butterworth low-pass, causal: 3 Hz for the head, 5 Hz for the brows, never on lips and
                  lids (real talking heads have 97 % of their motion power below 6 Hz); at most two frames of delay
    head          values beyond 2 standard deviations are compressed towards 3.5, which hardly one in a hundred frames
                  of real speakers exceeds
    lower face    multiplied by the speech gate: the mouth is closed during silence
    borders       x'[t] = x[t] + a (x[t−1] − 2 x[t] + x[t+1]) for the two frames on either side of a border between
                  chunks, on lips, lids and gaze. A chunk begins where the last one ended, but not at its speed: without
                  this, lips and lids start anew six times a second, which is visible as trembling. With a = 0.15 the
                  acceleration at borders is what it is inside chunks (``python -m benchmarks chunk-borders``)

``MotionPostprocessor`` does this for streams, ``postprocess_motion`` for whole sequences; both give the same result.
``Controls`` are what a user may turn up or down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.rendering.emotion import check_emotion, emotion_offset
from flowportrait.rendering.motion_basis import (
    BLINK,
    BROWS,
    GAZE,
    HEAD,
    LOWER_FACE,
    MOTION_DIM,
    MotionBasis,
    lip_pair_gaps,
)

# --- Delivery --------------------------------------------------------------------------------------------------------

_UNCHANGED, _LIMIT = 2.0, 3.5
"""Standard deviations of head motion up to which it is unchanged, and which it never exceeds."""


def postprocess_motion(
    motion: torch.Tensor, chunk: int, share: float, gates: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the filtered and joined motion of whole sequences.

    Args:
        motion: sequences ``[B, T, 30]`` that were sampled in chunks.
        chunk: frames of a chunk.
        share: the weight a of the smoothing at borders.
        gates: speech gates ``[B, T]``, by default one.
    """
    motion = MotionLowPass()(motion)
    if gates is not None:
        motion[..., LOWER_FACE] *= gates[..., None]
    return join_chunks(motion, chunk, share)


class MotionPostprocessor:
    """``postprocess_motion`` for a batch of streams, chunk by chunk; the last frame of a chunk is held back until
    the next one."""

    def __init__(self, chunk: int, share: float) -> None:
        self.low_pass, self.joiner = MotionLowPass(), ChunkJoiner(share if chunk > 1 else 0.0)

    def __call__(self, motion: torch.Tensor, gates: torch.Tensor, frames: int | None = None) -> torch.Tensor:
        """Take the first ``frames`` of the next chunk and return the frames that are ready ``[B, m, 30]``.

        Args:
            motion: the next chunk ``[B, n, 30]``.
            gates: its speech gates ``[B, n]``.
            frames: how many frames of it are used, by default all.
        """
        motion = self.low_pass(motion)
        motion[..., LOWER_FACE] *= gates[..., None]
        return self.joiner(motion[:, :frames])

    def finish(self) -> torch.Tensor:
        """Return the frame that is still held back, ``[B, ≤ 1, 30]``."""
        return self.joiner.finish()

    def state(self) -> dict[str, Any]:
        """Return the state of the filters."""
        return {"low_pass": vars(self.low_pass), "joiner": vars(self.joiner)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state that ``state`` returned."""
        for part, values in state.items():
            vars(getattr(self, part)).update(values)


# --- Low-pass --------------------------------------------------------------------------------------------------------


class Biquad(NamedTuple):
    """A second-order filter section: y ← b₀ x + z₀,  z₀ ← b₁ x − a₁ y + z₁,  z₁ ← b₂ x − a₂ y.

    The coefficients are those of ``scipy.signal.butter(2, cutoff, fs=25, output="sos")`` and ``sosfilt_zi``. They are
    stored here because importing scipy.signal takes longer than drawing a second of motion.
    """

    numerator: tuple[float, float, float]
    feedback: tuple[float, float]
    settled: tuple[float, float]
    """State after a long input of ones."""

    def initial_state(self, first: np.ndarray) -> np.ndarray:
        """Return the state ``[2, B, C]`` after a long input of values ``first`` ``[B, C]``."""
        return np.stack([np.float64(z) * first for z in self.settled])

    def run(self, track: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Return ``track`` ``[B, T, C]`` filtered, and update ``state`` in place."""
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
    """The low-pass of head and brows, and the bounds of the head, for a batch of streams.

    The state continues from call to call.
    """

    def __init__(self) -> None:
        self._state: list[np.ndarray] | None = None

    def __call__(self, motion: torch.Tensor) -> torch.Tensor:
        """Return the filtered motion ``[B, T, 30]``; the first call starts as if its first frame had lasted long
        before."""
        track = motion.numpy()
        if self._state is None:
            self._state = [biquad.initial_state(track[:, 0, part]) for part, biquad in _BANDS]
        result = track.copy()
        for (part, biquad), state in zip(_BANDS, self._state, strict=True):
            result[..., part] = biquad.run(track[..., part], state)
        result[..., HEAD] = _compress(result[..., HEAD])
        return torch.from_numpy(result)


def _compress(head: np.ndarray) -> np.ndarray:
    """Return values unchanged up to ``_UNCHANGED`` and compressed smoothly below ``_LIMIT`` beyond it."""
    room = _LIMIT - _UNCHANGED
    excess = np.maximum(np.abs(head) - _UNCHANGED, 0)
    return np.sign(head) * (np.minimum(np.abs(head), _UNCHANGED) + room * np.tanh(excess / room))


# --- Borders between chunks ------------------------------------------------------------------------------------------


def join_chunks(motion: torch.Tensor, chunk: int, share: float) -> torch.Tensor:
    """Return motion ``[B, T, 30]`` with smoothed borders between its chunks of ``chunk`` frames; ``share`` is a."""
    frames = [t for t in range(1, motion.shape[1] - 1) if _is_next_to_border(t, chunk)]
    bend = motion[:, [t - 1 for t in frames]] - 2 * motion[:, frames] + motion[:, [t + 1 for t in frames]]
    result = motion.clone()
    result[:, frames] += share * bend * _border_mask(motion)
    return result


class ChunkJoiner:
    """``join_chunks`` for a batch of streams.

    The last frame of a chunk is held back until the next chunk is available.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._held: torch.Tensor | None = None

    def __call__(self, chunk: torch.Tensor) -> torch.Tensor:
        """Take the next frames ``[..., n, 30]`` and return those that are ready: the one held back, and all but the
        last."""
        previous = chunk[..., :0, :] if self._held is None else self._held
        known = torch.cat([previous, chunk], -2)
        ready, first = known.clone(), previous.shape[-2]
        for t in (first - 1, first):
            if first and 0 < t < known.shape[-2] - 1:
                bend = known[..., t - 1, :] - 2 * known[..., t, :] + known[..., t + 1, :]
                ready[..., t, :] += self.share * bend * _border_mask(known)
        returned = max(first - 1, 0)
        self._held = known[..., -2:, :]
        return ready[..., returned:-1, :]

    def finish(self) -> torch.Tensor:
        """Return the frame that is still held back, ``[..., ≤ 1, 30]``."""
        return torch.zeros(0, MOTION_DIM) if self._held is None else self._held[..., -1:, :]


def _is_next_to_border(t: int, chunk: int) -> bool:
    return chunk > 1 and ((t % chunk == 0) or (t % chunk == chunk - 1))


def _border_mask(like: torch.Tensor) -> torch.Tensor:
    """Return a mask ``[30]`` of the coefficients that are smoothed at borders."""
    mask = like.new_zeros(MOTION_DIM)
    for part in (LOWER_FACE, BLINK, GAZE):
        mask[part] = 1
    return mask


# --- Controls --------------------------------------------------------------------------------------------------------
#
# No control changes the mean opening of the lips.
#
#     blink, gaze, head     their own coordinates:  motion[part] · scale (+ offset)
#     expression            brows, and the part N of the lower face that opens and closes no lips (smile, width):
#                           motion + (scale − 1) · motion N,     N = projection on the null space of the lip gap
#     emotion               a constant that leaves the mean lip gap (``rendering.emotion``)

_LARGEST_SCALE = 3.0
LARGEST_GAZE = 30.0
"""Largest gaze angle in degrees."""

_EYEBALL = 12 / 90
"""Radius of an eyeball in outer-eye-corner distances (about 12 and 90 mm)."""

_IRISES = (468, 473)


@dataclass(frozen=True)
class Controls:
    """User controls of motion; calling them with motion ``[..., 30]`` returns the controlled motion.

    Attributes:
        blink: scale of blinks; 1 leaves them unchanged, 0 removes them.
        head_motion: scale of head motion.
        expression_scale: scale of brows and smiles.
        gaze: degrees to the viewer's right and up from straight ahead, added to the eye movements of the motion.
        emotion: weight, from 0 to 1, of each emotion that is added; see ``rendering.emotion.EMOTIONS``.

    Raises:
        BadInput: if a value is out of range.
    """

    blink: float = 1.0
    head_motion: float = 1.0
    expression_scale: float = 1.0
    gaze: tuple[float, float] = (0.0, 0.0)
    emotion: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("blink", "head_motion", "expression_scale"):
            value = getattr(self, name)
            if not 0 <= value <= _LARGEST_SCALE:
                raise BadInput(f"{name}={value} is not possible: give a number from 0 to {_LARGEST_SCALE:g}.")
        if not all(math.isfinite(angle) and abs(angle) <= LARGEST_GAZE for angle in self.gaze):
            raise BadInput(f"gaze={self.gaze} is not possible: give degrees within ±{LARGEST_GAZE:g}.")
        check_emotion(self.emotion)

    def __call__(self, motion: torch.Tensor) -> torch.Tensor:
        """Return the controlled motion ``[..., 30]`` as a new tensor."""
        result = motion.clone()
        result[..., BROWS] *= self.expression_scale
        result[..., LOWER_FACE] += (self.expression_scale - 1) * (motion[..., LOWER_FACE] @ lip_preserving_projection())
        result[..., BLINK] *= self.blink
        result[..., HEAD] *= self.head_motion
        result[..., GAZE] += gaze_coefficients(*self.gaze)
        if self.emotion:
            result += emotion_offset(self.emotion)
        return result


@lru_cache(maxsize=1)
def lip_preserving_projection() -> torch.Tensor:
    """Return the projection ``[16, 16]`` of lower-face motion on directions that change none of the nine lip gaps."""
    gap = lip_pair_gaps(MotionBasis.load().directions[LOWER_FACE]).double()
    return (torch.eye(gap.shape[0], dtype=torch.float64) - gap @ torch.linalg.pinv(gap)).float()


def gaze_coefficients(right: float, up: float) -> torch.Tensor:
    """Return the gaze coefficients ``[2]`` of eyes turned by degrees to the viewer's right and up.

    The iris moves by sin(angle) of the eyeball's radius.
    """
    per_std = MotionBasis.load().directions[GAZE][:, _IRISES, :2].mean(1)
    offset = _EYEBALL * torch.tensor([math.sin(math.radians(right)), -math.sin(math.radians(up))])
    return torch.linalg.solve(per_std.T, offset)
