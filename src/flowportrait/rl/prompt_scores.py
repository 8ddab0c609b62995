"""This module scores the samples that a policy makes of prompts, without training on them.

prompts ─► condition ─► samples of the ODE, with the same initial noise each time ─► rewards ─► mean of each
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from flowportrait.flow.kernels import ode_kernel
from flowportrait.flow.noise import NoiseKey
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.plan import apply_policy_schedule
from flowportrait.rl.rollout import rollout
from flowportrait.rl.task import Task

SCORING_ITERATION = 2**32
"""The iteration in the key of the noise, one that no training reaches."""


@torch.no_grad()
def mean_scores(
    policy: Any, task: Task, rewards: CompositeReward, config: PostTrainConfig, prompts: int, samples: int
) -> dict[str, float]:
    """Return the mean score of every reward over samples of prompts; NaN if a reward scores none of them.

    Args:
        policy: the policy with the weights to measure.
        task: a task of these prompts alone.
        rewards: the rewards.
        config: the recipe, of which the noise levels are taken.
        prompts: number of prompts.
        samples: samples of each prompt.
    """
    drawn = task.draw(prompts, config.seed, 0)
    group = torch.arange(prompts).repeat_interleave(samples)
    condition = task.condition(policy, drawn).repeat(samples)
    plan = config.plan(config.seed, 0, prompts, condition.chunks)
    plan = replace(plan, stochastic=torch.zeros_like(plan.stochastic), record=plan.record[:, :0], forks=())
    trajectory = rollout(
        policy, condition, group, torch.arange(len(group)), apply_policy_schedule(policy, plan), ode_kernel(),
        NoiseKey(config.seed, SCORING_ITERATION, config.version),
    )  # fmt: skip
    scores = rewards(task.batch(policy, trajectory, drawn.select(group)))
    return {name: float(score.value[score.valid].mean()) for name, score in scores.items()}
