"""Post-training on still portraits.

draw ─► attributes of a training face ─► rollout ─► pictures ─► rewards
                 └─► the exemplar: of the pool's faces the one most alike
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from flowportrait.flow.noise import seed_of
from flowportrait.portraitgen.measured import LARGE, Faces
from flowportrait.portraitgen.portrait_flow import PortraitFlow, StillBatch, Wanted, as_pictures, still_batch
from flowportrait.rl.rollout import Trajectory


@dataclass(frozen=True)
class PortraitPrompts:
    """attributes ``[G, 5]`` as measured, one row per group, of these rows of the training faces."""

    attributes: torch.Tensor
    rows: torch.Tensor

    def select(self, rows: torch.Tensor) -> PortraitPrompts:
        """The rows at these indices."""
        return PortraitPrompts(self.attributes[rows], self.rows[rows])


class PortraitTask:
    """A ``Task``. exemplars: how many real faces there are, speakers taken in turn; none by default."""

    regions: Mapping[str, torch.Tensor] = {}

    def __init__(self, faces: Faces, exemplars: int = 0, seed: int = 0) -> None:
        self.attributes = torch.from_numpy(faces.attributes)
        by_speaker = torch.bincount(torch.from_numpy(faces.speaker).long())
        self.weight = 1 / by_speaker[torch.from_numpy(faces.speaker).long()].float()
        self.spread = self.attributes.std(0).clamp_min(1e-3)
        # A framed face's landmarks are where those of the face with these attributes are: finding them anew in every
        # sample would take longer than all the rest.
        scale = faces.small.shape[1] / LARGE
        flat = (faces.landmarks + 0.5) * scale - 0.5
        self.places = np.concatenate([flat, np.zeros_like(flat[..., :1])], -1).astype(np.float32)
        self.pool = pool(faces, exemplars, seed)
        self.pictures = as_pictures(faces.small[self.pool]) if len(self.pool) else None

    def draw(self, groups: int, seed: int, iteration: int) -> PortraitPrompts:
        generator = torch.Generator().manual_seed(seed_of(seed, iteration, 0))
        rows = torch.multinomial(self.weight, groups, generator=generator)
        return PortraitPrompts(self.attributes[rows], rows)

    def condition(self, policy: PortraitFlow, prompts: PortraitPrompts) -> Wanted:
        return Wanted(policy.standardise(prompts.attributes.to(policy.usual.device)))

    def real(self, policy: PortraitFlow, prompts: PortraitPrompts) -> torch.Tensor | None:
        if self.pictures is None:
            return None
        away = (prompts.attributes[:, None] - self.attributes[self.pool]) / self.spread
        nearest = away.square().sum(-1).argmin(1)
        return policy.space.encode(self.pictures[nearest].to(policy.usual.device))[:, None]

    def batch(self, policy: PortraitFlow, trajectory: Trajectory, prompts: PortraitPrompts) -> StillBatch:
        latents = trajectory.latents.to(policy.usual.device)
        return still_batch(
            policy.space.decode(latents[:, 0]).cpu(), framed=[self.places[row] for row in prompts.rows.tolist()],
            group=trajectory.group, policy=policy, condition=trajectory.condition, latents=latents,
        )  # fmt: skip


def pool(faces: Faces, count: int, seed: int = 0) -> np.ndarray:
    """Rows of ``count`` exemplars, speakers in turn."""
    rng = np.random.default_rng(seed)
    turns = [rng.permutation(np.flatnonzero(faces.speaker == speaker)) for speaker in np.unique(faces.speaker)]
    rng.shuffle(turns)
    longest = max((len(own) for own in turns), default=0)
    order = [int(own[turn]) for turn in range(longest) for own in turns if turn < len(own)]
    return np.array(order[:count], int)
