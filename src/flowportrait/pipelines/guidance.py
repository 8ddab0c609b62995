"""Rewards that guide a video or choose the best of several candidates.

    guide     the latent reward guides every chunk, or picks each chunk     (models.conditioning.Steering)
    best of   seeds s, s+1, … s+n−1 ─► motion of each ─► reward ─► the largest

No frame is drawn before the choice: these rewards read motion and sound, not pictures.
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
from flowportrait.media.mel import MELS_PER_FRAME, log_mel, normalize_loudness
from flowportrait.models.arflow import ARFlow
from flowportrait.models.conditioning import RewardSteering, ordered_weights
from flowportrait.pipelines.request import GUIDE_DIMENSIONS
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Reward

FIELDS_BEFORE_DRAWING = frozenset({"motion", "mel", "fps"})
"""Inputs that a reward can read before any frame is drawn."""
REWARD_ALIASES = {"reward": "preference", "expression": "preference_expression", "motion": "preference_motion"}
"""Short names accepted by ``AnimateRequest.by``, and the rewards that they stand for."""


class MotionCandidate(NamedTuple):
    """One of several candidates: its seed, motion ``[T, 30]``, and score (minus infinity if not measurable)."""

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
) -> RewardSteering | None:
    """Build the guidance that influences every chunk, or that chooses the best of several versions of it.

    Args:
        generator: the network that generates the motion.
        guide: weights from 0 to 10 by dimension of the latent reward.
        candidates: number of versions of each chunk, of which one is kept.
        by: the dimension by which the version is chosen; all of them by default.
        name: name of the generator in messages.
        dtype: number format of the latent reward, on the generator's device.

    Returns:
        The guidance; None if no guidance is requested.

    Raises:
        BadInput: the latent reward was trained with other audio features than this generator's.
    """
    if candidates == 1 and not any(guide.values()):
        return None
    from flowportrait.preferences.latent_reward import HISTORY_CHUNKS, LatentReward

    reward, fitting = LatentReward.load(device=device_of(generator), dtype=dtype), LatentReward.fresh(generator)
    if (reward.config.audio_width, reward.config.chunk) != (fitting.config.audio_width, generator.config.chunk):
        raise BadInput(
            f"Guiding and pruning do not fit {name}: the latent reward was trained with other audio features."
        )
    dimensions = (by,) if by in GUIDE_DIMENSIONS else GUIDE_DIMENSIONS
    chosen_by = ordered_weights(dict.fromkeys(dimensions, 1.0), GUIDE_DIMENSIONS)
    return RewardSteering(
        reward, ordered_weights(guide, GUIDE_DIMENSIONS), chosen_by, candidates, history_chunks=HISTORY_CHUNKS
    )


def build_ranking_reward(name: str | None = None) -> Reward:
    """Build the reward that ranks candidates.

    Args:
        name: a short name such as ``sync`` or ``expression``, or the name of any reward; ``reward`` by default.

    Raises:
        BadInput: there is no reward of this name.
    """
    from flowportrait.rewards.registry import build_reward

    name = name or "reward"
    return build_reward(REWARD_ALIASES.get(name, name))


@torch.no_grad()
def score_candidates(
    generate: Callable[[int], Iterable[torch.Tensor]], seeds: Iterable[int], audio: np.ndarray, reward: Reward
) -> list[MotionCandidate]:
    """Generate one motion per seed and score each.

    Args:
        generate: function that yields chunks of motion ``[t, 30]`` for a seed.
        seeds: random seeds.
        audio: speech ``[N]`` at 16 kHz.
        reward: the reward, which may read motion and sound only.

    Raises:
        BadInput: the reward needs more than motion and sound.
    """
    if unavailable := sorted(reward.needs - FIELDS_BEFORE_DRAWING):
        raise BadInput(f"The reward {reward.name} needs {unavailable[0]}: choose one that reads motion and sound.")
    mel = log_mel(normalize_loudness(audio))
    candidates = []
    for seed in seeds:
        motion = torch.cat(list(generate(seed)))
        score = reward(RewardBatch(motion[None], mel[None, : MELS_PER_FRAME * len(motion)]))
        candidates.append(MotionCandidate(seed, motion, float(score.value[0]) if score.valid[0] else -torch.inf))
    return candidates


def best_candidate(candidates: Sequence[MotionCandidate]) -> MotionCandidate:
    """Return the candidate with the highest score, the first one of equals."""
    return max(candidates, key=lambda candidate: candidate.score)


def describe_candidates(candidates: Sequence[MotionCandidate], by: str) -> str:
    """Return a sentence that compares the best candidate with the others by the reward ``by``."""
    chosen = best_candidate(candidates)
    scores = [candidate.score for candidate in candidates if math.isfinite(candidate.score)]
    if not scores:
        return f"Warning: none of {len(candidates)} candidates could be measured by {by}; seed {chosen.seed} is used."
    unmeasured = len(candidates) - len(scores)
    return (
        f"Seed {chosen.seed} is the best of {len(candidates)} by {by}, where higher is better: {chosen.score:.3f}; "
        f"the worst has {min(scores):.3f}, the median is {statistics.median(scores):.3f}"
        + (f"; {unmeasured} could not be measured." if unmeasured else ".")
    )
