"""Claims about rewards for moving as the speaker really moved."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flowportrait.models.arflow import load_generator
from flowportrait.rendering.motion_basis import BROWS, HEAD, LOWER_FACE
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import score_batch
from flowportrait.rewards.registry import RewardWeights, build_reward
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.task import SpeechItem, TalkingTask

FRAMES = 40
PARTS = {"true_lips": LOWER_FACE, "true_brows": BROWS, "true_head": HEAD}


def moved(seed: int) -> torch.Tensor:
    return torch.randn(3, FRAMES, 30, generator=torch.Generator().manual_seed(seed))


def value(name: str, motion: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    batch = RewardBatch(motion, torch.zeros(len(motion), 4 * FRAMES, 80), reference=real)
    return score_batch(build_reward(name), batch).value


@pytest.mark.parametrize("name", PARTS)
def test_the_speakers_own_motion_is_the_best_and_a_still_face_scores_nothing(name: str) -> None:
    real = moved(0)
    assert value(name, real, real).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert value(name, torch.zeros_like(real), real).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert value(name, -real, real).tolist() == pytest.approx([-1, -1, -1], abs=1e-5)


@pytest.mark.parametrize("size", [0.5, 0.9, 1.1, 2.0])
@pytest.mark.parametrize("name", PARTS)
def test_motion_that_is_too_small_or_too_large_loses_by_the_closed_form(name: str, size: float) -> None:
    real = moved(0)
    shift = torch.randn(3, 1, 30, generator=torch.Generator().manual_seed(1))  # where a face rests does not matter
    assert value(name, size * real + shift, real).tolist() == pytest.approx([2 * size / (1 + size**2)] * 3, abs=1e-5)


@pytest.mark.parametrize("name", PARTS)
def test_other_motion_scores_about_nothing(name: str) -> None:
    assert float(value(name, moved(1), moved(0)).abs().max()) < 0.3


@pytest.mark.parametrize("name", PARTS)
def test_only_its_own_part_of_the_face_counts(name: str) -> None:
    real, motion = moved(0), moved(1)
    other = moved(2)
    other[..., PARTS[name]] = motion[..., PARTS[name]]
    assert torch.equal(value(name, motion, real), value(name, other, real))


def test_the_value_is_the_mean_of_the_frames_and_has_the_gradient_of_finite_differences() -> None:
    real, motion = moved(0), moved(1).requires_grad_()
    batch = RewardBatch(motion, torch.zeros(3, 4 * FRAMES, 80), reference=real)
    score = build_reward("true_lips")(batch)
    assert score.dense is not None
    assert torch.allclose(score.dense.mean(1), score.value, atol=1e-6)
    gradient = torch.autograd.grad(score.value.sum(), motion)[0]
    direction = moved(3)
    step = 1e-2
    ends = [value("true_lips", motion.detach() + sign * step * direction, real).sum() for sign in (1, -1)]
    assert float((gradient * direction).sum()) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=2e-2)


def test_prompts_of_real_clips_bring_their_motion_to_the_reward() -> None:
    policy = load_generator("sft")
    clip = SpeechItem(torch.zeros(4 * 60, 80), 0, moved(0)[:1, :1].repeat(1, 60, 1)[0] + torch.arange(60)[:, None])
    task = TalkingTask([clip], 24, None, policy.config.chunk)
    prompts = task.draw(2, seed=0, iteration=0)
    assert prompts.motion is not None
    chunks = 24 // policy.config.chunk
    latents = torch.zeros(2, chunks, 30 * policy.config.chunk)
    with torch.no_grad():
        condition = task.condition(policy, prompts)
        drawn: Any = SimpleNamespace(latents=latents, condition=condition, group=torch.arange(2))
        batch = task.batch(policy, drawn, prompts)
    assert batch.reference is not None
    assert torch.equal(batch.reference, prompts.motion[:, 1:])
    assert batch.reference.shape == batch.motion.shape


def test_a_weight_that_is_set_to_zero_takes_a_reward_away_that_a_recipe_names() -> None:
    recipe = PostTrainConfig.from_recipe("direct", **{"rewards.sync": 0.0, "rewards.temporal": 0.1})
    assert "sync" not in recipe.rewards.by_name()
    assert recipe.rewards.by_name()["temporal"] == 0.1
    assert RewardWeights.only({"temporal": 2.0, "true_lips": 1.0}).by_name() == {"temporal": 2.0, "true_lips": 1.0}
