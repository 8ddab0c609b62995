"""Advantages allocated to denoising steps and latent regions, and the choice of samples to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from flowportrait.errors import BadInput
from flowportrait.rewards.registry import REWARDS
from flowportrait.rl.credit import ZERO_SPREAD, Credit
from flowportrait.rl.objectives.interface import Advantage
from flowportrait.rl.plan import Fork, node_means
from flowportrait.rl.rollout import Trajectory

# --- Allocation to denoising steps and regions ---
#
# A reward may count more at high or at low noise, since the composition of a clip is decided early and its texture late
# (after the abstract of OTCA, 2604.19234), and only in the latent region that it measures (after the abstract of ViPO,
# 2511.18719). States that several samples share up to a fork get the mean of these samples' advantages, normalised per
# place (BranchGRPO, 2509.06040).


@dataclass(frozen=True)
class Allocation:
    """At which noise levels and in which latent regions rewards count."""

    steps: dict[str, float] = field(default_factory=dict)
    """Reward → slope t in [−1, 1]: its weight at noise level σ is 1 + t·(2σ − 1). A slope of 1 makes it count most at
    high noise, −1 at low noise, 0 equally. Rewards without an entry have 0."""
    regions: dict[str, str] = field(default_factory=dict)
    """Reward → the latent region in which it counts. Rewards without an entry count in all regions."""
    node_std: Literal["leaves", "nodes"] = "leaves"
    """What the std of a depth of a tree is taken over: the samples, each with its node's mean, or the nodes, each
    once."""

    values_before = (("node_std", "leaves"),)

    def __post_init__(self) -> None:
        for name, slope in self.steps.items():
            if not -1 <= slope <= 1:
                raise BadInput(f"allocation.steps: the slope of {name} is {slope}; it must be between -1 and 1.")


def allocate_advantage(
    credit: Credit,
    trajectory: Trajectory,
    allocation: Allocation,
    regions: Mapping[str, torch.Tensor],
    forks: Sequence[Fork] = (),
    limit: float = 5.0,
    equal_regions: bool = False,
) -> Advantage:
    """Return the advantage of every sample, chunk, recorded step and region.

    Args:
        credit: advantages per chunk by reward.
        trajectory: the samples.
        allocation: at which noise levels and in which regions rewards count.
        regions: region → mask ``[D]`` of 0 and 1 over latent elements.
        forks: forks of the plan that the samples were made with.
        limit: largest absolute value of an advantage.
        equal_regions: see ``Advantage``.

    Raises:
        BadInput: the allocation has a reward or a region that does not exist.
    """
    _check_allocation(allocation, credit, regions)
    if not (allocation.steps or allocation.regions or forks):
        return Advantage(credit.advantage[:, :, None, None], valid=_valid(credit, allocation, [""]))
    names = list(regions) if allocation.regions else [""]
    sigma = trajectory.sigma.cpu()
    if not sigma.shape[-1]:  # no recorded steps: all noise levels have the same weight
        sigma = torch.full((len(trajectory), 1, 1), 0.5)
    value = torch.zeros(*credit.advantage.shape, sigma.shape[-1], len(names))
    for reward, part in credit.parts.items():
        slope = allocation.steps.get(reward, 0.0)
        weight = 1 + slope * (2 * sigma - 1)
        counts_in = torch.tensor([allocation.regions.get(reward, name) == name for name in names])
        value += (part[:, :, None] * weight)[..., None] * counts_in
    if forks:
        value = _per_node(value, trajectory, allocation.node_std)
    masks = torch.stack([regions[name] for name in names]) if allocation.regions else None
    return Advantage(value.clamp(-limit, limit), masks, _valid(credit, allocation, names), equal_regions)


def _valid(credit: Credit, allocation: Allocation, names: Sequence[str]) -> torch.Tensor | None:
    """Return the mask ``[B, 1, 1, P]`` of samples that any reward, and all rewards that count in a region, can
    compare."""
    if not credit.valid:
        return None
    any_valid = torch.stack(list(credit.valid.values())).any(0)
    columns = []
    for region in names:
        masks = (mask for reward, mask in credit.valid.items() if allocation.regions.get(reward, region) == region)
        columns.append(torch.stack([any_valid, *masks]).all(0))
    return torch.stack(columns, -1)[:, None, None]


def select_best_and_worst(
    score: torch.Tensor, group: torch.Tensor, count: int | None, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the rows to train on: all, or the best and the worst ``count // 2`` of every group.

    Samples that are not ``valid`` ``[B]`` are chosen only if there are too few others. Source: DanceGRPO (2505.07818).
    """
    if count is None:
        return torch.arange(len(score))
    valid = torch.ones_like(group, dtype=torch.bool) if valid is None else valid
    selected = []
    for group_id in group.unique():
        rows = (group == group_id).nonzero()[:, 0]
        ranked = rows[score[rows].argsort(stable=True)]
        scored, unscored = ranked[valid[ranked]], ranked[~valid[ranked]]
        middle = (len(scored) + 1) // 2
        ranked = torch.cat([scored[:middle], unscored, scored[middle:]])
        selected.append(torch.cat([ranked[: count // 2], ranked[-(count // 2) :]]) if count < len(rows) else rows)
    return torch.cat(selected).sort().values


def _per_node(value: torch.Tensor, trajectory: Trajectory, over: Literal["leaves", "nodes"]) -> torch.Tensor:
    """Return the advantages ``[B, N, R, P]`` of the tree nodes that samples pass, from those of the samples.

    They are the means over the samples of a node, normalised inside groups at every chunk and step.
    """
    result = torch.zeros_like(value)
    source, group = trajectory.noise_source_id, trajectory.group
    for region in range(value.shape[-1]):
        node = node_means(value[..., region], source, group)
        for group_id in group.unique():
            rows = group == group_id
            deviation = node[rows] - node[rows].mean(0)
            std = deviation.std(0)
            if over == "nodes":
                share = 1 / (source[rows][:, None] == source[rows][None]).sum(1)  # of a node in each of its samples
                count = share.sum(0)
                mean = (share * node[rows]).sum(0) / count
                deviation = node[rows] - mean
                std = ((share * deviation.square()).sum(0) / (count - 1).clamp_min(1)).sqrt()
            result[rows, ..., region] = torch.where(std > ZERO_SPREAD, deviation / std.clamp_min(ZERO_SPREAD), 0)
    return result


def _check_allocation(allocation: Allocation, credit: Credit, regions: Mapping[str, torch.Tensor]) -> None:
    for name in (*allocation.steps, *allocation.regions):
        # A recipe's reward to which this run gives no weight is not a mistake.
        if name not in credit.parts and name not in REWARDS:
            raise BadInput(f"allocation names the reward {name!r}; this run has {', '.join(credit.parts)}.")
    for region in allocation.regions.values():
        if region not in regions:
            choices = ", ".join(regions) or "no regions of its own"
            raise BadInput(f"allocation.regions names {region!r}; the generator has {choices}.")
