"""What a rollout leaves behind: enough to replay every recorded transition exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from flowportrait.flow.kernel import Step
from flowportrait.posttrain.rows import each


@dataclass(frozen=True)
class Trajectory:
    """B samples of N chunks with R recorded steps over latents of D numbers.

    group ``[B]``, sample ``[B]`` ids; condition of each sample; latents ``[B, N, D]`` clean result; step ``[B, R]``
    recorded indices; sigma ``[B, 1, R]``; coefficients ``[B, N, R, 1]`` each; trainable ``[B, N, R]`` bool, false
    where the step was not stochastic; owner ``[B, N, R]`` whose noise it was; x, x_next, noise ``[B, N, R, D]``;
    real ``[B]`` bool marks real clips; v_behaviour ``[B, N, R, D]``, the velocity a rollout was made with if it is
    older than the weights now trained.
    """

    group: torch.Tensor
    sample: torch.Tensor
    condition: Any
    latents: torch.Tensor
    step: torch.Tensor
    sigma: torch.Tensor
    coefficients: Step
    trainable: torch.Tensor
    owner: torch.Tensor
    x: torch.Tensor
    x_next: torch.Tensor
    noise: torch.Tensor
    real: torch.Tensor
    v_behaviour: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def gain(self) -> torch.Tensor:
        """k = b/s of every transition ``[B, N, R, 1]``; zero where there is nothing to train."""
        where = self.trainable[..., None]
        return torch.where(where, self.coefficients.b / torch.where(where, self.coefficients.s, 1), 0)

    def select(self, rows: torch.Tensor) -> Trajectory:
        """The samples at ``rows``."""

        def pick(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return value[rows]
            if isinstance(value, Step):
                return Step(*(part[rows] for part in value))
            return value if value is None else value.select(rows)

        return replace(self, **{f.name: pick(getattr(self, f.name)) for f in fields(self)})

    def to(self, device: torch.device | str) -> Trajectory:
        """Everything but the ids on a device: off-loaded between rollout and update, back for its shard."""

        kept = ("group", "sample", "real")
        moved = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in kept}
        return replace(self, **{name: each(lambda part: part.to(device), value) for name, value in moved.items()})


def finished(condition: Any, latents: torch.Tensor, group: torch.Tensor, sample: torch.Tensor) -> Trajectory:
    """Samples ``[B, N, D]`` of which only the end is known, not the way there: no recorded step."""
    batch, chunks, size = latents.shape
    nowhere = torch.empty(batch, chunks, 0, dtype=torch.long)
    path = latents.new_empty(batch, chunks, 0, size)
    no_steps = latents.new_empty(batch, chunks, 0, 1)
    return Trajectory(
        group=group, sample=sample, condition=condition, latents=latents, step=nowhere[:, 0],
        sigma=latents.new_empty(batch, 1, 0), coefficients=Step(no_steps, no_steps, no_steps),
        trainable=nowhere.to(latents.device, torch.bool), owner=nowhere, x=path, x_next=path, noise=path,
        real=torch.zeros(batch, dtype=torch.bool),
    )  # fmt: skip


def join(parts: Sequence[Trajectory]) -> Trajectory:
    """Trajectories of different samples under the same recorded step count, as one."""

    def glue(*pieces: torch.Tensor) -> torch.Tensor:
        return torch.cat(pieces)

    return Trajectory(*(each(glue, *(getattr(part, f.name) for part in parts)) for f in fields(Trajectory)))
