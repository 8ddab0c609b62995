"""Who does what when several processes train one policy: groups are dealt out whole, scores are shared.

    groups 0 1 2 3 4 5  on two processes:  0 1 2 | 3 4 5

Group and sample ids are global and noise is keyed by them, so every process count draws the same samples. Credit
is computed from everybody's scores; gradients are averaged by torch, over whole weights or shards
(``training/shards.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median_low

import torch
from accelerate import Accelerator

from flowportrait.errors import BadInput
from flowportrait.posttrain.collect import join_scores
from flowportrait.reward.interface import Score
from flowportrait.training.processes import roll_call

WORST = frozenset({"noise_gap", "ratio/first_error", "skipped"})
"""Metrics of which the largest of any process counts."""


@dataclass(frozen=True)
class Share:
    """This process's groups ``[G/W]`` among W processes."""

    groups: torch.Tensor

    @classmethod
    def of(cls, accelerator: Accelerator, groups: int, parts: int = 1) -> Share:
        """A contiguous, equal share, to be divided into ``parts`` of whole groups.

        Raises:
            BadInput: the groups cannot be dealt out evenly.
        """
        world = accelerator.num_processes
        if groups % world:
            raise BadInput(f"groups={groups} cannot be dealt out evenly to {world} processes: choose a multiple.")
        size = groups // world
        if world > 1 and size % parts:
            raise BadInput(
                f"updates={parts} takes whole groups, which {size} per process do not divide into: choose groups as a "
                f"multiple of {world * parts}."
            )
        first = accelerator.process_index * size
        return cls(torch.arange(first, first + size))

    def own_rows(self, group: torch.Tensor) -> torch.Tensor:
        """Rows of everybody's samples, given their groups ``[B]``, that are this process's."""
        return torch.isin(group, self.groups).nonzero()[:, 0]


def gather_scores(
    accelerator: Accelerator, scores: Mapping[str, Score], group: torch.Tensor
) -> tuple[dict[str, Score], torch.Tensor]:
    """Everybody's scores and their groups, in the order of the groups."""
    everyone = roll_call(accelerator, (dict(scores), group))
    return join_scores([own for own, _ in everyone]), torch.cat([own for _, own in everyone])


def together(accelerator: Accelerator, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> dict[str, float]:
    """Every process's metrics of an iteration as one: means, but the largest of errors and times; among several
    processes also who was slowest before they met, and how much slower than the middle one."""
    everyone = roll_call(accelerator, dict(metrics))
    times = roll_call(accelerator, dict(seconds))
    found: dict[str, float] = {}
    for key in dict.fromkeys(key for own in everyone for key in own):
        values = [own[key] for own in everyone if key in own]
        found[key] = max(values) if key in WORST else sum(values) / len(values)
    found |= {key: max(own[key] for own in times) for key in seconds}
    if len(times) > 1:
        alone = [own["seconds/rollout"] + own["seconds/waiting"] for own in times]
        slowest = max(range(len(alone)), key=alone.__getitem__)
        found |= {"slowest/process": slowest, "slowest/times": alone[slowest] / max(median_low(alone), 1e-9)}
    return found
