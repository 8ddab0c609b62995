"""Does the face move as filmed faces do: no trembling, no freezing, no jumps? Read from its landmarks alone.

    a = rms acceleration of the face's middle       h = share of steps in which nothing moves
    steadiness = − max(ln a, ln a₀) − 4 h           in distances between the outer corners of the eyes

a₀ is what the steadiest fifth of real clips has: steadier earns nothing, so that a photo, which never moves (h = 1),
loses. Trembling raises a; a freeze raises h, and a by the jump that ends it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flowportrait.judge.tracks import from_tracks
from flowportrait.reward.interface import RewardBatch, Score

OUTER_CORNERS = (33, 263)
HELD = 4.0
_TINY = 1e-5


@dataclass(frozen=True)
class Steadiness:
    """floor: ln a₀; unmoved: speed per frame under which a step counts as none. Both of real clips."""

    floor: float
    unmoved: float
    name: str = "steadiness"
    needs: frozenset[str] = frozenset({"places"})

    def __call__(self, batch: RewardBatch) -> Score:
        return from_tracks(batch, self.figures, "steadiness")

    def figures(self, places: torch.Tensor) -> torch.Tensor:
        """Of tracks ``[B, T, 478, 2]`` px, ``[B]``."""
        shaking, speed = track_statistics(places)
        return -shaking.clamp_min(self.floor) - HELD * (speed < self.unmoved).float().mean(1)

    @classmethod
    def of_real(cls, places: torch.Tensor) -> Steadiness:
        """From real clips ``[B, T, 478, 2]`` px: a₀ is their 20 %, half of their slowest 5 % of steps is unmoved."""
        shaking, speed = track_statistics(places)
        return cls(float(shaking.quantile(0.2)), float(speed.flatten().quantile(0.05)) / 2)


def track_statistics(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """ln a ``[B]`` and the rms speed of all landmarks ``[B, T − 1]`` of tracks ``[B, T, 478, 2]`` px."""
    left, right = (places[:, :, corner] for corner in OUTER_CORNERS)
    scaled = places / (left - right).norm(dim=-1).mean(1)[:, None, None, None]
    acceleration = scaled.mean(2).diff(n=2, dim=1).square().sum(-1).mean(1).sqrt()
    speed = scaled.diff(dim=1).square().sum(-1).mean(-1).sqrt()
    return (acceleration + _TINY).log(), speed
