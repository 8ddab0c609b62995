"""Pictures drawn freely as something to post-train: ``generator.patch_flow`` under rewards that look at frames.

The test bed of perceptual rewards: motion of a codec keeps a face whole whatever a policy does, patches of a frame do
not. Prompts are windows of footage: a first frame, and the sound after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from flowportrait.codec.basis import MOTION_DIM
from flowportrait.codec.vae_codec import VaeCodec
from flowportrait.flow.noise import seed_of
from flowportrait.generator.face_film import Film, pictures
from flowportrait.generator.patch_flow import PatchCondition, PatchFlow
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS
from flowportrait.posttrain.rollout import Trajectory
from flowportrait.reward.batch import RewardBatch


class Scenes(NamedTuple):
    """heard ``[G, T, 144]``, portrait ``[G, D]`` and the real latents ``[G, T, D]``."""

    heard: torch.Tensor
    portrait: torch.Tensor
    real: torch.Tensor

    def select(self, rows: torch.Tensor) -> Scenes:
        """The rows at these indices."""
        return Scenes(*(part[rows] for part in self))


class FilmTask:
    """Windows of ``frames`` frames of films with more than that, drawn with ``codec`` at ``side`` pixels."""

    def __init__(self, films: Sequence[Film], frames: int, codec: VaeCodec, side: int) -> None:
        self.films = [film for film in films if len(film.latents) > frames]
        self.frames, self.codec, self.side = frames, codec, side
        self.regions: Mapping[str, torch.Tensor] = {}

    def draw(self, groups: int, seed: int, iteration: int) -> Scenes:
        generator = torch.Generator().manual_seed(seed_of(seed, iteration, 0))
        rows = []
        for _ in range(groups):
            film = self.films[int(torch.randint(len(self.films), (), generator=generator))]
            first = int(torch.randint(1, len(film.latents) - self.frames + 1, (), generator=generator))
            window = slice(first, first + self.frames)
            rows.append((film.features[window], film.latents[first - 1], film.latents[window]))
        return Scenes(*(torch.stack(part).float() for part in zip(*rows, strict=True)))

    def condition(self, policy: PatchFlow, scenes: Scenes) -> PatchCondition:
        return policy.condition(scenes.heard, scenes.portrait)

    def real(self, policy: PatchFlow, scenes: Scenes) -> torch.Tensor | None:
        return scenes.real

    def batch(self, policy: PatchFlow, trajectory: Trajectory, scenes: Scenes) -> RewardBatch:
        """Rewards may ask for frames; there is no motion and no sound to read."""
        latents, count = trajectory.latents.cpu(), len(trajectory.latents)

        def show(_: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
            chosen = latents[:, list(indices)].flatten(0, 1)
            shown = np.stack(list(pictures(chosen, self.codec, self.side)))
            return torch.from_numpy(shown).unflatten(0, (count, -1)).permute(0, 1, 4, 2, 3).float() / 255

        nothing = torch.zeros(count, self.frames, MOTION_DIM)
        silence = torch.zeros(count, self.frames * MELS_PER_FRAME, N_MELS)
        return RewardBatch(nothing, silence, show, group=trajectory.group, policy=policy,
                           condition=trajectory.condition, latents=latents, domain="filmed")  # fmt: skip
