"""Rewards that guide a video or choose among several.

    guide     every chunk is bent by, or chosen by, the latent reward       (generator.steering)
    best of   seeds s, s+1, … s+n−1 ─► motion each ─► reward ─► the largest

Nothing is drawn before it is chosen: these rewards read motion and sound, not pictures.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from flowportrait.devices import device_of
from flowportrait.errors import BadInput
from flowportrait.media.mel import MELS_PER_FRAME, level, log_mel
from flowportrait.models.arflow import ARFlow
from flowportrait.models.conditioning import Steering, ordered_weights
from flowportrait.pipelines.request import GUIDE_DIMENSIONS
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Reward

READABLE_FIELDS = frozenset({"motion", "mel", "fps"})
"""What a reward can read of motion that is not drawn yet."""
REWARD_ALIASES = {"reward": "preference", "expression": "preference_expression", "motion": "preference_motion"}
"""Short names of ``AnimateRequest.by`` and the rewards that they stand for."""


class Candidate(NamedTuple):
    """One of several: its seed, motion ``[T, 30]``, and score (minus infinity where it could not be measured)."""

    seed: int
    motion: torch.Tensor
    score: float


def build_guidance(
    generator: ARFlow,
    guide: Mapping[str, float],
    candidates: int = 1,
    by: str | None = None,
    name: str = "it",
    dtype: torch.dtype = torch.float32,
) -> Steering | None:
    """Build what bends every chunk by ``guide``, or chooses the best of ``candidates``; None where nothing is asked.

    Args:
        generator: the network that generates the motion.
        guide: weights from 0 to 10 by dimension of the latent reward.
        candidates: how many chunks are generated, of which one is kept.
        by: the dimension that chooses; all of them by default.
        name: stands for the generator in messages.
        dtype: number format in which the latent reward computes, on the generator's device.

    Raises:
        BadInput: the latent reward was trained on other audio features than this generator's.
    """
    if candidates == 1 and not any(guide.values()):
        return None
    from flowportrait.preferences.latent_reward import REACH, LatentReward

    reward, fresh = LatentReward.load(device=device_of(generator), dtype=dtype), LatentReward.fresh(generator)
    if (reward.config.heard, reward.config.chunk) != (fresh.config.heard, generator.config.chunk):
        raise BadInput(f"Guiding and pruning do not fit {name}: the latent reward hears otherwise.")
    dimensions = (by,) if by in GUIDE_DIMENSIONS else GUIDE_DIMENSIONS
    chosen_by = ordered_weights(dict.fromkeys(dimensions, 1.0), GUIDE_DIMENSIONS)
    return Steering(reward, ordered_weights(guide, GUIDE_DIMENSIONS), chosen_by, candidates, history_chunks=REACH)


def choosing_reward(name: str | None = None) -> Reward:
    """The reward that chooses among candidates: a short name such as sync or expression, or any reward's.

    Raises:
        BadInput: there is none of this name.
    """
    from flowportrait.rewards.registry import build

    name = name or "reward"
    return build(REWARD_ALIASES.get(name, name))


@torch.no_grad()
def score_candidates(
    generate: Callable[[int], Iterable[torch.Tensor]], seeds: Iterable[int], audio: np.ndarray, reward: Reward
) -> list[Candidate]:
    """Generate motion per seed, in chunks ``[t, 30]``, and score it on 16 kHz ``audio`` ``[N]``.

    Raises:
        BadInput: the reward needs more than motion and sound.
    """
    if more := sorted(reward.needs - READABLE_FIELDS):
        raise BadInput(f"The reward {reward.name} needs {more[0]}: choose one that reads motion and sound.")
    mel = log_mel(level(audio))
    found = []
    for seed in seeds:
        motion = torch.cat(list(generate(seed)))
        score = reward(RewardBatch(motion[None], mel[None, : MELS_PER_FRAME * len(motion)]))
        found.append(Candidate(seed, motion, float(score.value[0]) if score.valid[0] else -torch.inf))
    return found


def best_candidate(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate of highest score; of equals the first."""
    return max(candidates, key=lambda candidate: candidate.score)


def comparison_sentence(candidates: Sequence[Candidate], by: str) -> str:
    """How the best candidate compares with the others: more is better for every reward."""
    chosen = best_candidate(candidates)
    scores = [candidate.score for candidate in candidates if math.isfinite(candidate.score)]
    if not scores:
        return f"Warning: none of {len(candidates)} performances could be measured by {by}; seed {chosen.seed} is used."
    unmeasured = len(candidates) - len(scores)
    return (
        f"Seed {chosen.seed} is the best of {len(candidates)} by {by}, where higher is better: {chosen.score:.3f}; "
        f"the worst has {min(scores):.3f}, the median is {statistics.median(scores):.3f}"
        + (f"; {unmeasured} could not be measured." if unmeasured else ".")
    )
