"""This module holds the task of post-training on still portraits.

attributes of a training face ─► rollout ─► pictures ─► rewards
            └─► the exemplar: the face in the pool with the most similar attributes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from flowportrait.flow.noise import mix_seed
from flowportrait.portraitgen.measured_judge import LARGE_SIDE, FramedFaces
from flowportrait.portraitgen.still_flow import (
    AttributeCondition,
    PortraitFlow,
    StillBatch,
    frames_to_pictures,
    still_batch,
)
from flowportrait.rl.rollout import Trajectory


@dataclass(frozen=True)
class PortraitPrompts:
    """The prompts of one iteration.

    Args:
        attributes: ``[G, 5]`` as measured, one row per group.
        rows: ``[G]``, the rows of the training faces that have these attributes.
    """

    attributes: torch.Tensor
    rows: torch.Tensor

    def select(self, rows: torch.Tensor) -> PortraitPrompts:
        """Return the prompts at these indices."""
        return PortraitPrompts(self.attributes[rows], self.rows[rows])


class PortraitTask:
    """A ``Task`` that asks a ``PortraitFlow`` for portraits with the attributes of real faces.

    Args:
        faces: real faces; every speaker is drawn equally often.
        exemplars: number of real faces in the pool of exemplars; see ``pool``.
        seed: seed of the pool.
    """

    regions: Mapping[str, torch.Tensor] = {}

    def __init__(self, faces: FramedFaces, exemplars: int = 0, seed: int = 0) -> None:
        self.attributes = torch.from_numpy(faces.attributes)
        by_speaker = torch.bincount(torch.from_numpy(faces.speaker).long())
        self.weight = 1 / by_speaker[torch.from_numpy(faces.speaker).long()].float()
        self.spread = self.attributes.std(0).clamp_min(1e-3)
        # The landmarks of a generated face are taken to be those of the real face with the same attributes: a search
        # in every sample would take longer than all other steps.
        scale = faces.small.shape[1] / LARGE_SIDE
        flat = (faces.landmarks + 0.5) * scale - 0.5
        self.places = np.concatenate([flat, np.zeros_like(flat[..., :1])], -1).astype(np.float32)
        self.pool = pool(faces, exemplars, seed)
        self.pictures = frames_to_pictures(faces.small[self.pool]) if len(self.pool) else None

    def draw(self, groups: int, seed: int, iteration: int) -> PortraitPrompts:
        """See ``Task``; the attributes are those of random training faces."""
        generator = torch.Generator().manual_seed(mix_seed(seed, iteration, 0))
        rows = torch.multinomial(self.weight, groups, generator=generator)
        return PortraitPrompts(self.attributes[rows], rows)

    def condition(self, policy: PortraitFlow, prompts: PortraitPrompts) -> AttributeCondition:
        """See ``Task``."""
        return AttributeCondition(policy.standardise(prompts.attributes.to(policy.attribute_statistics.device)))

    def real(self, policy: PortraitFlow, prompts: PortraitPrompts) -> torch.Tensor | None:
        """See ``Task``; returns the latents ``[G, 1, D]`` of the most similar faces in the pool, None without any."""
        if self.pictures is None:
            return None
        away = (prompts.attributes[:, None] - self.attributes[self.pool]) / self.spread
        nearest = away.square().sum(-1).argmin(1)
        return policy.space.encode(self.pictures[nearest].to(policy.attribute_statistics.device))[:, None]

    def batch(self, policy: PortraitFlow, trajectory: Trajectory, prompts: PortraitPrompts) -> StillBatch:
        """See ``Task``."""
        latents = trajectory.latents.to(policy.attribute_statistics.device)
        return still_batch(
            policy.space.decode(latents[:, 0]).cpu(), framed=[self.places[row] for row in prompts.rows.tolist()],
            group=trajectory.group, policy=policy, condition=trajectory.condition, latents=latents,
        )  # fmt: skip


def pool(faces: FramedFaces, count: int, seed: int = 0) -> np.ndarray:
    """Return the rows of ``count`` exemplars, taken from the speakers in turn, in random order."""
    rng = np.random.default_rng(seed)
    by_speaker = [rng.permutation(np.flatnonzero(faces.speaker == speaker)) for speaker in np.unique(faces.speaker)]
    rng.shuffle(by_speaker)
    longest = max((len(rows) for rows in by_speaker), default=0)
    order = [int(rows[turn]) for turn in range(longest) for rows in by_speaker if turn < len(rows)]
    return np.array(order[:count], int)
