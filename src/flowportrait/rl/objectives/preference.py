"""Objectives from preferences.

DPO          the better of two samples against the worse (Flow-DPO)
Threshold    single rated samples against one threshold for all prompts (TGO)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import logsigmoid

from flowportrait.config import at_least
from flowportrait.flow.noise import NoiseKey
from flowportrait.rl.objectives.interface import Loss, LossInputs, noised_points
from flowportrait.rl.rollout import Points, Trajectory


@dataclass(frozen=True)
class DPO:
    """Flow-DPO (2501.13918): the better of two samples should become likelier, and the worse one less so.

        E = mean ‖v − (ε − x₀)‖²                     of a chunk at one noised state; ε and σ shared by the pair
        L = −log σ( −β/2 · [ (E − E_ref)_winner − (E − E_ref)_loser ] )  +  anchor · E_winner

    A pair is the best and the worst sample of a group: of one's own online, of given clips offline (``given``). A group
    whose samples are all alike makes none and adds nothing: L is a mean over groups, and does not depend on how they
    are cut into backward passes. A sample that could not be judged is in no pair; a real clip is the better one
    whatever it was judged to be. With regions, each has its own best and worst: who has the better lips need not have
    the better head. Regions with the same two samples are one pair, whose margin is that of their latent numbers
    together, and a pair weighs by the share of these numbers: regions paid alike are none. β is constant, which the
    paper found better at every value than the derived β·(1−σ)², offered as ``level``. The anchor keeps the winner
    likely (RPO, 2404.19733): a margin can also grow while both fall.
    """

    beta: float = 100.0
    level: Literal["constant", "derived"] = "constant"
    states: int = 6
    """Noised states per chunk."""
    anchor: float = 0.0
    """Weight of matching the winner itself."""
    needs: frozenset[str] = frozenset({"ref"})
    whole_groups = True

    def __post_init__(self) -> None:
        at_least(self, beta=0, states=1, anchor=0)

    def points(self, trajectory: Trajectory, key: NoiseKey) -> Points:
        return noised_points(trajectory, self.states, key, by_group=True)

    def __call__(self, inputs: LossInputs) -> Loss:
        points, advantage, trajectory = inputs.points, inputs.advantage, inputs.trajectory
        assert points.target is not None, "forward-process points have a target"
        live = advantage.reduce((inputs.live - points.target).square(), "mean").movedim(-1, 1)
        reference = advantage.reduce((inputs.others["ref"] - points.target).square(), "mean").movedim(-1, 1)
        valid = None if advantage.valid is None else advantage.valid[:, 0, 0]
        winner, loser, region = pairs(advantage.value.mean((1, 2)), trajectory.group, trajectory.real, valid)
        if not len(winner):
            return Loss(live.sum() * 0, {"loss/policy": 0.0, "pairs": 0.0})
        (winner, loser), pair = torch.stack([winner, loser]).unique(dim=1, return_inverse=True)
        # [pairs, N, R] of the latent numbers of all regions of a pair together.
        size = live.new_ones(1) if advantage.regions is None else advantage.regions.to(live).sum(1)
        share = live.new_zeros(len(winner), len(size)).index_put((pair, region), size[region] / size.sum())
        weight = share.sum(1)[:, None, None]
        winner_gain, loser_gain, error = (
            torch.einsum("mp,mpnr->mnr", share, own) / weight
            for own in ((reference - live)[winner], (reference - live)[loser], live[winner])
        )
        margin = winner_gain - loser_gain
        level = 1.0 if self.level == "constant" else (1 - points.sigma.expand(*live[:, 0].shape)[winner]).square()
        groups = len(trajectory.group.unique())
        total = -(weight * logsigmoid(self.beta / 2 * level * margin)).mean((1, 2)).sum() / groups
        if self.anchor:
            total = total + self.anchor * (weight * error).mean((1, 2)).sum() / groups
        metrics = {
            "loss/policy": float(total.detach()),
            "pairs": float(len(winner)),
            "margin": float(margin.detach().mean()),
            # Falls below zero where the winner itself became less likely: DPO's known failure.
            "winner_gain": float(winner_gain.detach().mean()),
            "loser_gain": float(loser_gain.detach().mean()),
        }
        return Loss(total, metrics)


def pairs(
    score: torch.Tensor, group: torch.Tensor, real: torch.Tensor, valid: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of the best and the worst sample of every group in which there is a difference, and the region that it is
    in, from scores ``[B, P]``; a real clip is the best, and rows that are not ``valid`` ``[B, P or 1]`` are left
    out."""
    known = torch.ones_like(score, dtype=torch.bool) if valid is None else (valid | real[:, None]).expand_as(score)
    score = torch.where(real[:, None], torch.inf, score)
    found = []
    for family in group.unique():
        for region in range(score.shape[1]):
            rows = ((group == family) & known[:, region]).nonzero()[:, 0]
            if not len(rows):
                continue
            best, worst = rows[score[rows, region].argmax()], rows[score[rows, region].argmin()]
            if score[best, region] > score[worst, region]:
                found.append((int(best), int(worst), region))
    winner, loser, region_of = torch.tensor(found, dtype=torch.long).reshape(-1, 3).T
    return winner, loser, region_of


_SMALLEST = 1e-12


@dataclass(frozen=True)
class Threshold:
    """Threshold-guided optimisation (TGO, 2605.04653): single rated clips, no pairs.

        E = mean ‖v − (ε − x₀)‖²        z = sign(r − τ)        w = |r − τ|
        L = mean  w · −log σ( z · β/2 · (E_ref − E) )

    With regions of shares s_p, w = Σ s_p·w_p and z·(E_ref − E) becomes Σ s_p·w_p·z_p·(E_ref − E)_p / w: one sigmoid of
    what all regions gained, so that regions paid alike are none.

    The best policy near a reference has log p/p_ref = (r − V)/β, V being what its prompt is worth; one threshold τ for
    all prompts stands for V, so that a clip above it should gain likelihood and one below it lose. The advantage that
    comes in is r − τ (``credit.baseline_scope = batch``). The abstract says this much; the loss, Kahneman–Tversky's
    without its reference point (KTO, 2402.01306), is our reading.
    """

    beta: float = 100.0
    states: int = 6
    """Noised states per chunk."""
    needs: frozenset[str] = frozenset({"ref"})
    whole_groups = False

    def __post_init__(self) -> None:
        at_least(self, beta=0, states=1)

    def points(self, trajectory: Trajectory, key: NoiseKey) -> Points:
        return noised_points(trajectory, self.states, key)

    def __call__(self, inputs: LossInputs) -> Loss:
        points, advantage = inputs.points, inputs.advantage
        assert points.target is not None, "forward-process points have a target"
        live = advantage.reduce((inputs.live - points.target).square(), "mean")
        gain = advantage.reduce((inputs.others["ref"] - points.target).square(), "mean") - live
        above = advantage.mask_invalid(advantage.value)
        weight = advantage.combine_regions(above.abs(), "mean")
        signed = advantage.combine_regions(above * gain, "mean") / weight.clamp_min(_SMALLEST)
        total = (weight * -logsigmoid(self.beta / 2 * signed)).mean()
        moved = gain.detach().mean((1, 2))
        liked = above.expand(-1, -1, -1, gain.shape[-1]).mean((1, 2)) > 0
        metrics = {"loss/policy": float(total.detach())}
        for name, rows in (("winner_gain", liked), ("loser_gain", ~liked)):
            if rows.any():
                metrics[name] = float(moved[rows].mean())
        return Loss(total, metrics)
