"""The one loop:  items → rollout → scores → credit → replay → clipped updates → roles.

What differs between algorithms comes in with the recipe; nothing in here asks which one runs.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from flowportrait.codec.calm import Calm
from flowportrait.flow.kernel import KERNELS
from flowportrait.generator.arflow import ARFlow
from flowportrait.posttrain.credit import assign
from flowportrait.posttrain.items import Item, draw_items
from flowportrait.posttrain.objective import clipped_ratio
from flowportrait.posttrain.plan import every_step
from flowportrait.posttrain.recipes import Recipe
from flowportrait.posttrain.replay import fix_old, replay_velocity
from flowportrait.posttrain.roles import Roles
from flowportrait.posttrain.rollout import rollout
from flowportrait.posttrain.trajectory import Trajectory
from flowportrait.reward.composite import Composite
from flowportrait.reward.interface import Draw, RewardBatch

DrawFor = Callable[[Sequence[int]], Draw]
"""Given the portrait of each row of a batch, how to render it small."""


class Trainer:
    """Post-trains a policy on items under a composite reward. Deterministic: all randomness is keyed."""

    def __init__(
        self, policy: ARFlow, items: Sequence[Item], recipe: Recipe, rewards: Composite, draw_for: DrawFor | None,
    ) -> None:  # fmt: skip
        self.items = items
        self.recipe = recipe
        self.rewards = rewards
        self.draw_for = draw_for
        self.roles = Roles(policy, recipe.ema)
        self.optimizer = torch.optim.AdamW(policy.parameters(), lr=recipe.learning_rate, weight_decay=0.0)
        self.planner = every_step(recipe.steps, recipe.shift, recipe.seed, recipe.trained_steps)
        self.kernel = KERNELS[recipe.kernel](recipe.eta)
        self.iteration = 0
        self.updates = 0

    def step(self) -> dict[str, float]:
        """One iteration; returns what to log."""
        started = time.monotonic()
        trajectory, mel, portraits = self.collect()
        rolled = time.monotonic()
        motion = Calm()(self.roles.live.to_motion(trajectory.latents))
        draw = self.draw_for(portraits) if self.draw_for else None
        scores = self.rewards(RewardBatch(motion, mel, draw))
        chunks = trajectory.latents.shape[1]
        credit = assign(scores, trajectory.group, chunks, self.rewards.weights, self.recipe.credit)
        scored = time.monotonic()
        trajectory, gap = fix_old(self.roles.live, trajectory)
        metrics = self.update(trajectory, credit.advantage)
        self.iteration += 1
        return {
            "iteration": self.iteration,
            **credit.metrics,
            **metrics,
            "noise_gap": gap,
            "seconds/rollout": rolled - started,
            "seconds/reward": scored - rolled,
            "seconds/update": time.monotonic() - scored,
        }

    def collect(self) -> tuple[Trajectory, torch.Tensor, list[int]]:
        """Roll out this iteration's groups; also the mel and the portrait of every sample."""
        recipe, size = self.recipe, self.recipe.group_size
        mel, portraits = draw_items(self.items, recipe.groups, recipe.frames, recipe.seed, self.iteration)
        group = torch.arange(recipe.groups).repeat_interleave(size)
        sample = torch.arange(recipe.groups * size)
        with torch.no_grad():
            condition = self.roles.live.condition(mel).repeat(size)
        trajectory = rollout(
            self.roles.live, condition, group, sample, self.planner(self.iteration), self.kernel,
            (recipe.seed, self.iteration), recipe.same_start,
        )  # fmt: skip
        return trajectory, mel.repeat_interleave(size, 0), [p for p in portraits for _ in range(size)]

    def update(self, trajectory: Trajectory, advantage: torch.Tensor) -> dict[str, float]:
        """Optimiser steps on one batch of rollouts; metrics are means over the steps."""
        recipe = self.recipe
        collected: list[dict[str, float]] = []
        position = torch.arange(len(trajectory)) % recipe.updates
        for part in range(recipe.updates):
            rows = (position == part).nonzero()[:, 0]
            shard, own = trajectory.select(rows), advantage[rows]
            reference = None
            if recipe.objective.kl_weight > 0:
                with torch.no_grad():
                    reference = replay_velocity(self.roles.ref, shard)
            loss = clipped_ratio(shard, replay_velocity(self.roles.live, shard), reference, own, recipe.objective)
            self.optimizer.zero_grad()
            loss.total.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.roles.live.parameters(), recipe.grad_clip)
            if math.isfinite(float(norm)):
                self.optimizer.step()
                self.updates += 1
                self.roles.after_update(self.updates)
            collected.append({**loss.metrics, "grad_norm": float(norm)})
        return {key: sum(m[key] for m in collected) / len(collected) for key in collected[0]}

    def save(self, path: Path) -> None:
        """One file with everything a resumed run needs, written whole or not at all."""
        partial = path.with_suffix(".partial")
        state = {
            "roles": self.roles.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "updates": self.updates,
            "recipe": json.dumps(asdict(self.recipe)),
        }
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Continue from ``save``; noise, items and plans are functions of the iteration and need no state."""
        state = torch.load(path, weights_only=True)
        self.roles.load_state_dict(state["roles"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration, self.updates = state["iteration"], state["updates"]
