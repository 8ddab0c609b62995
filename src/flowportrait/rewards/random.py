"""Random scores: the control that shows what a post-training run changes without any reward.

A run whose rewards are random drifts as its method drifts. Only what a run with real rewards changes beyond that is
learned from them (Shao et al. 2025, Spurious Rewards, found the same need for language models).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowportrait.rewards.batch import RewardBatch
    from flowportrait.rewards.interface import Score

CHANCE = "chance"
"""Name of the random reward of all latents."""
RANDOM_REWARDS = (CHANCE, "chance_mouth", "chance_eyes", "chance_head")
"""Independent random rewards: one for all latents, and one for each latent region of a portrait."""
EARLIER_RANDOM_REWARDS = ("random", "random_mouth", "random_eyes", "random_head")
"""Names of ``RANDOM_REWARDS`` up to version 0.3.0, in the same order. They give the same scores."""


@dataclass(frozen=True)
class RandomReward:
    """Scores every sample with a random number from 0 to 1, which depends on the sample and on the reward's name.

    The sample is its motion, or its latents if it has no motion: pictures and data that show no face.
    """

    name: str = CHANCE
    needs: frozenset[str] = frozenset()

    def __call__(self, batch: RewardBatch) -> Score:
        import torch  # here, since lists of names and the doctor import this module

        from flowportrait.rewards.interface import all_valid

        samples = batch.motion if batch.latents is None or batch.motion.any() else batch.latents
        numbers = samples.detach().float().cpu().contiguous().numpy()
        # The key has the earlier name, so that a control begun under it has the same scores when it is resumed.
        key = dict(zip(RANDOM_REWARDS, EARLIER_RANDOM_REWARDS, strict=True)).get(self.name, self.name).encode()
        keys = [hashlib.sha256(key + sample.tobytes()).digest() for sample in numbers]
        return all_valid(torch.tensor([int.from_bytes(key[:4], "big") / 2**32 for key in keys]))


def is_random_reward(name: str) -> bool:
    """Return whether a reward of this name gives random scores, under today's or an earlier name."""
    return name in RANDOM_REWARDS or name in EARLIER_RANDOM_REWARDS
