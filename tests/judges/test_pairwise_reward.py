"""The reward of Pref-GRPO asks a judge about pairs, and never about single clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from flowportrait.errors import BadInput
from flowportrait.judges.build import PairPreference, pairwise_reward
from flowportrait.judges.methods import ClipPair, PairChoice
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import score_batch
from flowportrait.rewards.registry import RewardOptions
from flowportrait.rewards.relative import PairwiseWinReward
from flowportrait.rl.recipes import find_recipe

GROUP = torch.tensor([0, 0, 0, 1, 1])


class Cyclic:
    """Prefers rock to scissors, scissors to paper and paper to rock, which no scores of single clips can say."""

    def __init__(self) -> None:
        self.pairs: list[tuple[int, int]] = []

    def compare(self, pairs: Sequence[ClipPair]) -> list[dict[str, PairChoice]]:
        found = []
        for first, second in pairs:
            one, other = (round(float(np.mean(clip.frames)) / 20) for clip in (first, second))
            self.pairs.append((one, other))
            margin = 1.0 if (other - one) % 3 == 1 else -1.0
            found.append(
                {"lip_sync": PairChoice(margin), "expressiveness": PairChoice(None), "motion": PairChoice(None)}
            )
        return found


def drawn(motion: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
    """Grey frames, 20 levels apart, by the first coefficient of motion."""
    return (motion[:, list(indices), :1, None, None] * 20 / 255).expand(-1, -1, 3, 8, 8)


def batch() -> RewardBatch:
    motion = torch.tensor([0.0, 1.0, 2.0, 1.0, 2.0])[:, None, None].expand(-1, 4, 30).clone()
    return RewardBatch(motion, torch.zeros(5, 16, 80), drawn, group=GROUP, audio=torch.zeros(5, 4 * 640))


def test_siblings_are_compared_in_pairs_once_and_others_never() -> None:
    judge: Any = Cyclic()
    reward = PairwiseWinReward(PairPreference(judge), "pairwise", frozenset({"frames", "audio", "group"}))
    found = score_batch(reward, batch())
    assert judge.pairs == [(0, 1), (0, 2), (1, 2), (1, 2)]
    assert found.value.tolist() == [0.5, 0.5, 0.5, 1.0, 0.0], "a cycle of three is a tie; of two one is better"


def test_a_judge_of_single_clips_is_refused_with_the_way_out() -> None:
    with pytest.raises(BadInput, match=r"grades one at a time: set rewards.options.judge .* credit.win_rate=all"):
        pairwise_reward(RewardOptions())


def test_pref_grpo_is_paid_by_pairs_and_not_by_ranks_of_scores() -> None:
    recipe = find_recipe("pref-grpo")
    assert recipe.rewards.by_name()["pairwise"] == 0.5
    assert recipe.credit.win_rate == ()
