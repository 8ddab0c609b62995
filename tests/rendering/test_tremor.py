"""Fast motion as a reward: what swings wider does not pass for steadier."""

from __future__ import annotations

import math

import torch

from flowportrait.rendering.motion_basis import GAZE, LOWER_FACE
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.registry import build_reward

TIMES = torch.arange(75) / 25


def waves(slow: float, fast: float, part: slice = LOWER_FACE) -> RewardBatch:
    """Motion of one part at 2 Hz and at 9 Hz, three seconds."""
    track = slow * torch.sin(2 * math.pi * 2 * TIMES) + fast * torch.sin(2 * math.pi * 9 * TIMES)
    motion = torch.zeros(1, 75, 30)
    motion[..., part] = track[:, None]
    return RewardBatch(motion, torch.zeros(1, 300, 80))


def value(name: str, batch: RewardBatch) -> float:
    return float(build_reward(name)(batch).value)


def test_swinging_wider_pleases_the_share_and_not_the_tremor() -> None:
    assert value("steady_lips", waves(2.0, 0.2)) > value("steady_lips", waves(0.8, 0.2)) + 0.05
    assert value("tremor_lips", waves(2.0, 0.2)) <= value("tremor_lips", waves(0.8, 0.2)) + 0.02


def test_more_tremor_scores_less_where_it_is_looked_for() -> None:
    assert value("tremor_lips", waves(0.8, 0.4)) < value("tremor_lips", waves(0.8, 0.1))
    assert value("tremor_eyes", waves(0.8, 0.4)) == value("tremor_eyes", waves(0.8, 0.1))
    assert value("tremor_eyes", waves(0.8, 0.4, GAZE)) < value("tremor_eyes", waves(0.8, 0.1, GAZE))
