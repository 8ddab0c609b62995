"""A batch is paid for being like a crowd of real people, not for every clip being like the usual one."""

from __future__ import annotations

import torch

from flowportrait.rendering.motion_basis import BLINK, HEAD
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.motion_distribution import CROWD_WINDOW_FRAMES, QUANTILES, CrowdReward, window_statistics
from flowportrait.rewards.registry import build_reward


def people(share: float, count: int = 40) -> torch.Tensor:
    """Motion ``[B, 28, 30]`` of which a ``share`` blinks once."""
    generator = torch.Generator().manual_seed(0)
    motion = 0.2 * torch.randn(count, CROWD_WINDOW_FRAMES, 30, generator=generator)
    motion[: int(share * count), 10:14, BLINK] += 3.0
    return motion


def lids(made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    places = (torch.arange(QUANTILES) + 0.5) / QUANTILES
    crowd = CrowdReward(window_statistics(real)[:, 0].quantile(places, 0), groups=("blink",))
    return crowd(RewardBatch(made, torch.zeros(len(made), 4 * CROWD_WINDOW_FRAMES, 80))).value


def test_blinks_are_welcome_while_there_are_too_few_and_not_after() -> None:
    real = people(0.4)
    few, many = lids(people(0.1), real), lids(people(0.8), real)
    assert few[:4].mean() > few[4:].mean() + 0.1
    assert many[:32].mean() < many[32:].mean() - 0.1


def test_a_crowd_like_the_real_one_has_nothing_to_gain() -> None:
    assert lids(people(0.4), people(0.4)).abs().max() < 0.05


def test_every_frame_is_scored_by_the_windows_that_saw_it() -> None:
    motion = people(0.5).repeat(1, 3, 1)[:, :70]
    motion[:, :28, HEAD] *= 5.0
    score = build_reward("crowd_head")(RewardBatch(motion, torch.zeros(len(motion), 280, 80)))
    assert score.dense is not None
    assert score.dense.shape == (40, 70)
    assert torch.equal(score.dense[:, -1], score.dense[:, 60])
    assert not torch.allclose(score.dense[:, 0], score.dense[:, -1])


def test_a_stiff_start_is_not_made_good_by_a_wild_end() -> None:
    generator = torch.Generator().manual_seed(1)
    size = torch.linspace(0.6, 1.4, 16)[:, None, None]
    ramp = torch.where(torch.arange(3 * CROWD_WINDOW_FRAMES) < CROWD_WINDOW_FRAMES, 0.3, 3.0)[:, None]
    motion = size * ramp * torch.randn(16, 3 * CROWD_WINDOW_FRAMES, 30, generator=generator)
    dense = build_reward("crowd_head")(RewardBatch(motion, torch.zeros(16, 12 * CROWD_WINDOW_FRAMES, 80))).dense
    assert dense is not None
    assert dense[-1, 0] > dense[0, 0] + 0.1
    assert dense[-1, -1] < dense[0, -1] - 0.1
