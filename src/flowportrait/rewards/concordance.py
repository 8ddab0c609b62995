"""Rewards for moving as the speaker really moved while saying these words, where that is known.

A lip-sync network scores how plausible lips are beside a voice, and large or exaggerated motion can score above real
lips. These rewards compare with the recorded motion of the same words, so nothing is gained beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flowportrait.rendering.motion_basis import (
    BROWS,
    HEAD,
    LOWER_FACE,
    LOWER_LIP_PAIRS,
    UPPER_LIP_PAIRS,
    MotionBasis,
)
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid

_MIN_POWER = 1e-8
_REGIONS = {"true_lips": "mouth", "true_brows": "face", "true_head": "face"}


@dataclass(frozen=True)
class ConcordanceReward:
    """Rewards motion that follows the speaker's own, moment by moment and as far.

        x, y = deviations of the sample and of the real clip from their means over time
        concordance = 2 Σ_t ⟨x_t, y_t⟩ / ( Σ_t |x_t|² + Σ_t |y_t|² )
        dense[t]    = T times the term of frame t

    The means are left out, since faces rest in different positions: otherwise it is Lin's concordance correlation
    coefficient (Biometrics 45, 1989). If x has the correlation r with y and s times its amplitude, the value is
    2 r s / (1 + s²): right timing counts, and for every r the right amplitude is the best one. A still face scores 0,
    unlike by a distance, for which it is better than lively motion that is not exactly right.

    Attributes:
        name: ``true_lips`` compares displacements of the lips, ``true_brows`` and ``true_head`` coefficients.
    """

    name: str = "true_lips"
    needs: frozenset[str] = frozenset({"motion", "reference"})
    range: tuple[float, float] = (-1.0, 1.0)

    def __call__(self, batch: RewardBatch) -> Score:
        assert batch.reference is not None
        own, real = (self._deviations(motion) for motion in (batch.motion, batch.reference.to(batch.motion)))
        power = (own.square() + real.square()).sum((1, 2)).clamp_min(_MIN_POWER)
        dense = 2 * (own * real).sum(2) / power[:, None] * own.shape[1]
        return all_valid(dense.mean(1), dense)._replace(regions={_REGIONS[self.name]: dense})

    def _deviations(self, motion: torch.Tensor) -> torch.Tensor:
        """Return what is compared ``[B, T, D]``, without its mean over time."""
        if self.name == "true_brows":
            moved = motion[..., BROWS]
        elif self.name == "true_head":
            moved = motion[..., HEAD]
        else:
            points = MotionBasis.load().directions[LOWER_FACE, UPPER_LIP_PAIRS + LOWER_LIP_PAIRS, :2]
            moved = motion[..., LOWER_FACE] @ points.flatten(1).to(motion)
        return moved - moved.mean(1, keepdim=True)
