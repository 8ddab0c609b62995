"""A small generator of vectors, paths or pictures, to try a reward or a recipe on in seconds.

texts ─► conditions [B, C] ─┐
x_σ, σ ─────────────────────┴─► two hidden layers ─► x̂_0,   v = (x_σ − x̂_0) / σ
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from flowportrait.adapters.policy import DecodedSamples, Item

LOWEST_SIGMA = 0.1
"""Noise level below which the velocity is no longer divided by a smaller one."""


class SmallFlow(nn.Module):
    """A flow model of small samples under a vector of conditions, made of linear layers.

    It starts with random weights; ``adapters.pretraining.fit_generator`` trains it on samples.

    Args:
        shape: shape of the latents of one sample; they should have a size of about 1.
        condition_size: C, the number of conditions.
        conditions: returns the conditions ``[B, C]`` of the texts of prompts.
        data: returns the data ``[B, T, ...]`` that rewards see of latents ``[B, *shape]``; by default the latents,
            whose first axis is time.
        fps: frame rate of the data.
        width: size of the hidden layers.
        seed: seed of the weights.
    """

    def __init__(
        self,
        shape: Sequence[int],
        condition_size: int,
        conditions: Callable[[Sequence[str]], torch.Tensor],
        data: Callable[[torch.Tensor], torch.Tensor] | None = None,
        fps: float = 25.0,
        width: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.conditions, self.data, self.fps = tuple(shape), conditions, data, fps
        size = int(torch.Size(self.shape).numel())
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(
                nn.Linear(size + 1 + condition_size, width), nn.SiLU(),
                nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size),
            )  # fmt: skip

    def encode(self, items: Sequence[Item]) -> tuple[torch.Tensor]:
        """Return the conditions ``[B, C]`` of the items' texts."""
        return (self.conditions([item.text for item in items]),)

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, known: tuple[torch.Tensor]) -> torch.Tensor:
        """Return the velocity ``[B, *shape]``."""
        clean = self.net(torch.cat([x.flatten(1), sigma[:, None], known[0]], 1)).reshape(x.shape)
        return (x - clean) / sigma.clamp_min(LOWEST_SIGMA).reshape(-1, *[1] * len(self.shape))

    def decode(self, x: torch.Tensor, known: tuple[torch.Tensor]) -> DecodedSamples:
        """Return the data of latents."""
        return DecodedSamples(data=self.data(x) if self.data else x, fps=self.fps)
