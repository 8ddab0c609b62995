"""This module defines the objectives that learn from preferences.

DPO          compares the better of two samples with the worse (Flow-DPO)
Threshold    compares single rated samples with one threshold for all prompts (TGO)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import logsigmoid

from flowportrait.config import at_least
from flowportrait.flow.noise import NoiseKey
from flowportrait.rl.objectives.interface import Loss, LossInputs, noised_points
from flowportrait.rl.rollout import EvaluationPoints, Trajectory


@dataclass(frozen=True)
class DPO:
    """Flow-DPO (2501.13918), which makes the better of two samples likelier and the worse one less likely.

        E = mean ‖v − (ε − x₀)‖²                     of a chunk at one noised state; ε and σ shared by the pair
        L = −log σ( −β/2 · [ (E − E_ref)_winner − (E − E_ref)_loser ] )  +  anchor · E_winner

    A pair is the best and the worst sample of a group, online of the policy's samples, offline of existing clips
    (``rl.offline_data``). A group of equally good samples makes no pair and adds nothing; L is a mean over groups and
    does not depend on their division into backward passes. A sample without a score is in no pair. A real clip is
    always the better one.

    Each region has its own best and worst sample, since the sample with the better lips need not have the better head.
    Regions with the same two samples make one pair with a margin over their latent elements together. The weight of a
    pair is the share of these elements, so that equal advantages in all regions have the same effect as no regions.

    β is constant, which the paper found better at every value than the derived β·(1−σ)²; that is ``level="derived"``.
    The anchor keeps the winner likely (RPO, 2404.19733), since the margin can also grow while both become less likely.
    """

    beta: float = 100.0
    """How strongly a pair moves the policy away from the reference (β)."""
    level: Literal["constant", "derived"] = "constant"
    """Whether β is the same at every noise level, or β(1 − σ)², as derived."""
    states: int = 6
    """Noised states per chunk."""
    anchor: float = 0.0
    """Weight of the matching loss of the winner."""
    needs: frozenset[str] = frozenset({"ref"})
    """Further weights whose velocities the loss compares with."""
    whole_groups = True

    def __post_init__(self) -> None:
        at_least(self, beta=0, states=1, anchor=0)

    def points(self, trajectory: Trajectory, key: NoiseKey) -> EvaluationPoints:
        return noised_points(trajectory, self.states, key, by_group=True)

    def __call__(self, inputs: LossInputs) -> Loss:
        points, advantage, trajectory = inputs.points, inputs.advantage, inputs.trajectory
        assert points.target is not None, "forward-process points have a target"
        live = advantage.reduce((inputs.live - points.target).square(), "mean").movedim(-1, 1)
        reference = advantage.reduce((inputs.others["ref"] - points.target).square(), "mean").movedim(-1, 1)
        valid = None if advantage.valid is None else advantage.valid[:, 0, 0]
        winner, loser, region = best_worst_pairs(advantage.value.mean((1, 2)), trajectory.group, trajectory.real, valid)
        if not len(winner):
            return Loss(live.sum() * 0, {"loss/policy": 0.0, "pairs": 0.0})
        (winner, loser), pair = torch.stack([winner, loser]).unique(dim=1, return_inverse=True)
        # [pairs, N, R] over the latent elements of all regions of a pair together.
        size = live.new_ones(1) if advantage.regions is None else advantage.regions.to(live).sum(1)
        share = live.new_zeros(len(winner), len(size)).index_put((pair, region), size[region] / size.sum())
        weight = share.sum(1)[:, None, None]
        winner_gain, loser_gain, error = (
            torch.einsum("mp,mpnr->mnr", share, value) / weight
            for value in ((reference - live)[winner], (reference - live)[loser], live[winner])
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
            # Below zero if the winner became less likely, which is a known failure of DPO.
            "winner_gain": float(winner_gain.detach().mean()),
            "loser_gain": float(loser_gain.detach().mean()),
        }
        return Loss(total, metrics)


def best_worst_pairs(
    score: torch.Tensor, group: torch.Tensor, real: torch.Tensor, valid: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the best and the worst sample of every group and region in which samples differ.

    Args:
        score: scores ``[B, P]`` per region.
        group: ids of the groups ``[B]``.
        real: mask ``[B]`` of real clips, which are always the best.
        valid: mask ``[B, P]`` or ``[B, 1]``; other samples are left out.

    Returns:
        The rows of the best and of the worst samples, and the regions, ``[M]`` each.
    """
    usable = torch.ones_like(score, dtype=torch.bool) if valid is None else (valid | real[:, None]).expand_as(score)
    score = torch.where(real[:, None], torch.inf, score)
    found = []
    for group_id in group.unique():
        for region in range(score.shape[1]):
            rows = ((group == group_id) & usable[:, region]).nonzero()[:, 0]
            if not len(rows):
                continue
            best, worst = rows[score[rows, region].argmax()], rows[score[rows, region].argmin()]
            if score[best, region] > score[worst, region]:
                found.append((int(best), int(worst), region))
    winner, loser, region_of = torch.tensor(found, dtype=torch.long).reshape(-1, 3).T
    return winner, loser, region_of


_MIN_WEIGHT = 1e-12


@dataclass(frozen=True)
class Threshold:
    """Threshold-guided optimisation (TGO, 2605.04653), which learns from single rated clips without pairs.

        E = mean ‖v − (ε − x₀)‖²        z = sign(r − τ)        w = |r − τ|
        L = mean  w · −log σ( z · β/2 · (E_ref − E) )

    With regions of shares s_p, w = Σ s_p·w_p and z·(E_ref − E) becomes Σ s_p·w_p·z_p·(E_ref − E)_p / w. There is one
    sigmoid over all regions, so that equal advantages in all regions have the same effect as no regions.

    The optimal policy near a reference has log p/p_ref = (r − V)/β with the value V of its prompt. One threshold τ for
    all prompts replaces V: a clip above it should gain likelihood, and a clip below it should lose. The advantage must
    be r − τ (``credit.baseline_scope = batch``). This much is in the abstract of the paper. The loss, which is that of
    KTO (2402.01306) without its reference point, is our interpretation.
    """

    beta: float = 100.0
    """How strongly a sample moves the policy away from the reference (β)."""
    states: int = 6
    """Noised states per chunk."""
    needs: frozenset[str] = frozenset({"ref"})
    """Further weights whose velocities the loss compares with."""
    whole_groups = False

    def __post_init__(self) -> None:
        at_least(self, beta=0, states=1)

    def points(self, trajectory: Trajectory, key: NoiseKey) -> EvaluationPoints:
        return noised_points(trajectory, self.states, key)

    def __call__(self, inputs: LossInputs) -> Loss:
        points, advantage = inputs.points, inputs.advantage
        assert points.target is not None, "forward-process points have a target"
        live = advantage.reduce((inputs.live - points.target).square(), "mean")
        gain = advantage.reduce((inputs.others["ref"] - points.target).square(), "mean") - live
        distance = advantage.mask_invalid(advantage.value)
        weight = advantage.combine_regions(distance.abs(), "mean")
        signed = advantage.combine_regions(distance * gain, "mean") / weight.clamp_min(_MIN_WEIGHT)
        total = (weight * -logsigmoid(self.beta / 2 * signed)).mean()
        mean_gain = gain.detach().mean((1, 2))
        above = distance.expand(-1, -1, -1, gain.shape[-1]).mean((1, 2)) > 0
        metrics = {"loss/policy": float(total.detach())}
        for name, rows in (("winner_gain", above), ("loser_gain", ~above)):
            if rows.any():
                metrics[name] = float(mean_gain[rows].mean())
        return Loss(total, metrics)
