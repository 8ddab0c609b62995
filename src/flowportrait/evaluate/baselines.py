"""Motion that must lose: what a lip-sync measure has to tell from the real thing before it may judge
anything.

Each takes real motion ``[T, 30]`` of one clip and returns motion of the same shape for the same sound.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from flowportrait.codec.basis import LOWER, MotionBasis
from flowportrait.codec.lips import gap
from flowportrait.errors import BadInput
from flowportrait.evaluate.expert_data import loudness

SHIFT = 5


def still(motion: torch.Tensor, audio: np.ndarray) -> torch.Tensor:
    """The portrait as it is: no motion at all."""
    return torch.zeros_like(motion)


def loudness_jaw(motion: torch.Tensor, audio: np.ndarray) -> torch.Tensor:
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


def shifted(motion: torch.Tensor, audio: np.ndarray, frames: int = SHIFT) -> torch.Tensor:
    """The real motion, late by ``frames``; the beginning continues backwards, so there is no jump."""
    if len(motion) <= frames:
        raise BadInput(f"A clip of {len(motion)} frames is too short to be shifted by {frames}.")
    return torch.cat([motion[1 : frames + 1].flip(0), motion[:-frames]])


def other_sentence(motion: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The real motion ``[S, 30]`` of another sentence, to and fro until it is long enough."""
    there_and_back = torch.cat([other, other.flip(0)[1:-1]]) if len(other) > 2 else other
    rounds = -(-len(motion) // len(there_and_back))
    return there_and_back.repeat(rounds, 1)[: len(motion)]


MUST_LOSE: dict[str, Callable[[torch.Tensor, np.ndarray], torch.Tensor]] = {
    "still": still,
    "loudness jaw": loudness_jaw,
    f"shifted by {SHIFT}": shifted,
}


def must_lose(motion: torch.Tensor, audio: np.ndarray, other: torch.Tensor) -> dict[str, torch.Tensor]:
    """All baselines for one clip: real motion ``[T, 30]``, its sound (16 kHz ``[N]``), another sentence's
    motion."""
    found = {name: make(motion, audio) for name, make in MUST_LOSE.items()}
    return found | {"other sentence": other_sentence(motion, other)}


def _opening_axis() -> torch.Tensor:
    """Unit direction ``[16]`` of lower-face motion that opens the lips most."""
    basis = MotionBasis.load()
    opening = gap(basis.directions[LOWER]).mean(-1)
    return opening / opening.norm()
