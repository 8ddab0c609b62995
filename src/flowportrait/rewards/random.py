"""Random scores: the control that shows what a post-training run changes without any reward.

A run whose rewards are random drifts as its method drifts. Only what a run with real rewards changes beyond that is
learned from them (Shao et al. 2025, Spurious Rewards, found the same need for language models).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid

RANDOM_REWARDS = ("random", "random_mouth", "random_eyes", "random_head")
"""Independent random rewards: one for all latents, and one for each latent region of a portrait."""


@dataclass(frozen=True)
class RandomReward:
    """Scores every sample with a random number from 0 to 1, which depends on the sample and on the reward's name.

    The sample is its motion, or its latents if it has no motion: pictures and data that show no face.
    """

    name: str = RANDOM_REWARDS[0]
    needs: frozenset[str] = frozenset()

    def __call__(self, batch: RewardBatch) -> Score:
        samples = batch.motion if batch.latents is None or batch.motion.any() else batch.latents
        numbers = samples.detach().float().cpu().contiguous().numpy()
        keys = [hashlib.sha256(self.name.encode() + sample.tobytes()).digest() for sample in numbers]
        return all_valid(torch.tensor([int.from_bytes(key[:4], "big") / 2**32 for key in keys]))
