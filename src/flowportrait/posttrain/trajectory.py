"""What a rollout leaves behind: enough to replay every recorded transition exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from flowportrait.flow.kernel import Step
from flowportrait.generator.arflow import Condition


@dataclass(frozen=True)
class Trajectory:
    """B samples of N chunks with R recorded steps over latents of D numbers.

    group ``[B]``, sample ``[B]`` ids; condition of each sample; latents ``[B, N, D]`` clean result;
    step ``[R]`` recorded indices; sigma ``[R]``; coefficients ``[R, 1]`` each; x, x_next, noise
    ``[B, N, R, D]``; v_old likewise once ``replay`` has filled it in.
    """

    group: torch.Tensor
    sample: torch.Tensor
    condition: Condition
    latents: torch.Tensor
    step: torch.Tensor
    sigma: torch.Tensor
    coefficients: Step
    x: torch.Tensor
    x_next: torch.Tensor
    noise: torch.Tensor
    v_old: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.sample)

    def select(self, rows: torch.Tensor) -> Trajectory:
        """The samples at ``rows``."""
        return replace(
            self,
            group=self.group[rows],
            sample=self.sample[rows],
            condition=Condition(*(part[rows] for part in self.condition)),
            latents=self.latents[rows],
            x=self.x[rows],
            x_next=self.x_next[rows],
            noise=self.noise[rows],
            v_old=None if self.v_old is None else self.v_old[rows],
        )
