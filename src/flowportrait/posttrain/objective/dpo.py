"""Flow-DPO (2501.13918): the better of two samples should become likelier, and the worse one less so.

    E = mean ‖v − (ε − x₀)‖²                     ε and σ shared by the pair
    L = −log σ( −β/2 · [ (E − E_ref)_winner − (E − E_ref)_loser ] )

Online, a group's pair is its best and its worst sample; a group whose samples are all alike makes none. With regions,
each has its own pair of errors and they add up. β is constant, which the paper found better at every value than the
derived β·(1−σ)², offered as ``level``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import logsigmoid

from flowportrait.config import at_least
from flowportrait.posttrain.objective.interface import Evidence, Loss, Points, noised
from flowportrait.posttrain.trajectory import Trajectory


@dataclass(frozen=True)
class DPO:
    beta: float = 100.0
    level: Literal["constant", "derived"] = "constant"
    states: int = 6
    """Noised states per chunk."""
    needs: frozenset[str] = frozenset({"ref"})
    whole_groups = True

    def __post_init__(self) -> None:
        at_least(self, beta=0, states=1)

    def points(self, trajectory: Trajectory, key: tuple[int, ...]) -> Points:
        return noised(trajectory, self.states, key, by_group=True)

    def __call__(self, evidence: Evidence) -> Loss:
        points, advantage = evidence.points, evidence.advantage
        assert points.target is not None, "forward-process points have a target"
        live = advantage.reduce((evidence.live - points.target).square(), "mean")
        reference = advantage.reduce((evidence.others["ref"] - points.target).square(), "mean")
        winner, loser = pairs(advantage.per_sample, evidence.trajectory.group, evidence.trajectory.real)
        if not len(winner):
            return Loss(live.sum() * 0, {"loss/policy": 0.0, "pairs": 0.0})
        margin = ((live - reference)[winner] - (live - reference)[loser]).sum(-1)
        weight = (1 - points.sigma.expand(*live.shape[:3])[winner]).square() if self.level == "derived" else 1.0
        total = -logsigmoid(-self.beta / 2 * weight * margin).mean()
        metrics = {
            "loss/policy": float(total.detach()),
            "pairs": float(len(winner)),
            "margin": float(-margin.detach().mean()),
            # Falls below zero where the winner itself became less likely: DPO's known failure.
            "winner_gain": float((reference - live)[winner].detach().mean()),
        }
        return Loss(total, metrics)


def pairs(score: torch.Tensor, group: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the best and the worst sample of every group in which there is a difference; a real clip is the best."""
    score = torch.where(real, torch.inf, score)
    winners, losers = [], []
    for family in group.unique():
        rows = (group == family).nonzero()[:, 0]
        best, worst = rows[score[rows].argmax()], rows[score[rows].argmin()]
        if score[best] > score[worst]:
            winners.append(best)
            losers.append(worst)
    empty = torch.empty(0, dtype=torch.long)
    return (torch.stack(winners), torch.stack(losers)) if winners else (empty, empty)
