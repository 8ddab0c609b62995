"""Where and when an advantage counts: over denoising steps, latent regions, and the nodes of a tree.

    A[i, n, r, p] = Σ_reward  credit[i, n] · step weight(reward, σ_r) · [reward belongs to region p]

A reward may count more at high or at low noise (after OTCA, 2604.19234: the composition of a clip is decided early,
its texture late) and only in the region that it looks at (after ViPO, 2511.18719). Where siblings share a past, what
they share earns the mean of what came of it, normalised per place (BranchGRPO, 2509.06040).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from flowportrait.errors import BadInput
from flowportrait.posttrain.credit import Credit
from flowportrait.posttrain.objective.interface import Advantage
from flowportrait.posttrain.trajectory import Trajectory
from flowportrait.posttrain.tree import node_means
from flowportrait.reward.registry import REWARDS

_ZERO_SPREAD = 1e-6


@dataclass(frozen=True)
class Allocation:
    steps: dict[str, float] = field(default_factory=dict)
    """Reward → slope t in [−1, 1]: its weight at noise level σ is 1 + t·(2σ − 1). 1 pays only at high noise, −1 only
    at low noise, 0 (and every reward not named) alike."""
    regions: dict[str, str] = field(default_factory=dict)
    """Reward → the latent region that it pays; a reward not named pays all."""

    def __post_init__(self) -> None:
        for name, slope in self.steps.items():
            if not -1 <= slope <= 1:
                raise BadInput(f"allocation.steps: the slope of {name} is {slope}; it must be between -1 and 1.")


def spread(
    credit: Credit,
    trajectory: Trajectory,
    allocation: Allocation,
    regions: Mapping[str, torch.Tensor],
    forked: bool = False,
    limit: float = 5.0,
    equal_regions: bool = False,
) -> Advantage:
    """Advantages of a batch; ``regions``: latent numbers ``[D]`` (0 or 1) of every region the generator knows;
    ``equal_regions``: see ``Advantage``.

    Raises:
        BadInput: a reward or a region that does not exist is named.
    """
    _check(allocation, credit, regions)
    if not (allocation.steps or allocation.regions or forked):
        return Advantage(credit.advantage[:, :, None, None], valid=_valid(credit, allocation, [""]))
    names = list(regions) if allocation.regions else [""]
    sigma = trajectory.sigma.cpu()
    if not sigma.shape[-1]:  # only the end is known: every noise level counts alike
        sigma = torch.full((len(trajectory), 1, 1), 0.5)
    value = torch.zeros(*credit.advantage.shape, sigma.shape[-1], len(names))
    for reward, part in credit.parts.items():
        slope = allocation.steps.get(reward, 0.0)
        weight = 1 + slope * (2 * sigma - 1)
        own = torch.tensor([allocation.regions.get(reward, name) == name for name in names])
        value += (part[:, :, None] * weight)[..., None] * own
    if forked:
        value = _per_node(value, trajectory)
    masks = torch.stack([regions[name] for name in names]) if allocation.regions else None
    return Advantage(value.clamp(-limit, limit), masks, _valid(credit, allocation, names), equal_regions)


def _valid(credit: Credit, allocation: Allocation, names: Sequence[str]) -> torch.Tensor | None:
    """Whether each sample can be compared with its siblings in every region ``[B, 1, 1, P]``: by all rewards that pay
    it, and at all."""
    if not credit.valid:
        return None
    any_valid = torch.stack(list(credit.valid.values())).any(0)
    columns = []
    for region in names:
        paying = (own for reward, own in credit.valid.items() if allocation.regions.get(reward, region) == region)
        columns.append(torch.stack([any_valid, *paying]).all(0))
    return torch.stack(columns, -1)[:, None, None]


def extremes(
    score: torch.Tensor, group: torch.Tensor, count: int | None, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows to train on: all, or of every group the best and the worst ``count // 2`` (DanceGRPO, 2505.07818). Those
    that are not ``valid`` ``[B]`` are taken only where there are too few others."""
    if count is None:
        return torch.arange(len(score))
    valid = torch.ones_like(group, dtype=torch.bool) if valid is None else valid
    chosen = []
    for family in group.unique():
        rows = (group == family).nonzero()[:, 0]
        ranked = rows[score[rows].argsort(stable=True)]
        known, unknown = ranked[valid[ranked]], ranked[~valid[ranked]]
        middle = (len(known) + 1) // 2
        ranked = torch.cat([known[:middle], unknown, known[middle:]])
        chosen.append(torch.cat([ranked[: count // 2], ranked[-(count // 2) :]]) if count < len(rows) else rows)
    return torch.cat(chosen).sort().values


def _per_node(value: torch.Tensor, trajectory: Trajectory) -> torch.Tensor:
    """Leaf advantages ``[B, N, R, P]`` to those of the nodes passed, normalised among siblings at every place."""
    result = torch.zeros_like(value)
    for region in range(value.shape[-1]):
        node = node_means(value[..., region], trajectory.owner, trajectory.group)
        for family in trajectory.group.unique():
            rows = trajectory.group == family
            own = node[rows] - node[rows].mean(0)
            std = own.std(0)
            result[rows, ..., region] = torch.where(std > _ZERO_SPREAD, own / std.clamp_min(_ZERO_SPREAD), 0)
    return result


def _check(allocation: Allocation, credit: Credit, regions: Mapping[str, torch.Tensor]) -> None:
    for name in (*allocation.steps, *allocation.regions):
        # One that this run gives no weight to is a recipe's reward left out, and not a mistake.
        if name not in credit.parts and name not in REWARDS:
            raise BadInput(f"allocation names the reward {name!r}; this run has {', '.join(credit.parts)}.")
    for region in allocation.regions.values():
        if region not in regions:
            known = ", ".join(regions) or "no regions of its own"
            raise BadInput(f"allocation.regions names {region!r}; the generator has {known}.")
