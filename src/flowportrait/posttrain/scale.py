"""Who does what when several processes train one policy: groups are dealt out whole, scores are shared.

    groups 0 1 2 3 4 5  on two processes:  0 1 2 | 3 4 5

Group and sample ids are global and noise is keyed by them, so every process count draws the same samples. Credit
is computed from everybody's scores, gradients are averaged by ``accelerate``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from flowportrait.errors import BadInput
from flowportrait.posttrain.collect import join_scores
from flowportrait.reward.interface import Score


@dataclass(frozen=True)
class Share:
    """This process's groups ``[G/W]``."""

    groups: torch.Tensor

    @classmethod
    def of(cls, accelerator: Accelerator, groups: int) -> Share:
        """A contiguous, equal share.

        Raises:
            BadInput: the groups cannot be dealt out evenly.
        """
        world = accelerator.num_processes
        if groups % world:
            raise BadInput(f"groups={groups} cannot be dealt out evenly to {world} processes: choose a multiple.")
        size = groups // world
        first = accelerator.process_index * size
        return cls(torch.arange(first, first + size))

    def own_rows(self, group: torch.Tensor) -> torch.Tensor:
        """Rows of everybody's samples, given their groups ``[B]``, that are this process's."""
        return torch.isin(group, self.groups).nonzero()[:, 0]


def gather_scores(
    accelerator: Accelerator, scores: Mapping[str, Score], group: torch.Tensor
) -> tuple[dict[str, Score], torch.Tensor]:
    """Everybody's scores and their groups, in the order of the groups."""
    if accelerator.num_processes == 1:
        return dict(scores), group
    everyone = gather_object([(dict(scores), group)])
    return join_scores([own for own, _ in everyone]), torch.cat([own for _, own in everyone])
