"""What one update costs, against the loop over denoising steps that published scripts use.

    python benchmarks/engine.py [--repeats 5]

Same generator (the shipped ``sft``), same rollout, one process, one thread; variants take turns, medians of processor
time are compared, and every variant's gradient must equal the engine's within 1e-5.

    step loop, cache      for every recorded step: the backbone chunk by chunk through its KV cache, then the head
    step loop, parallel   for every recorded step: the backbone once over all chunks, then the head
    shared backbone       the backbone once, the head step by step
    engine                the backbone once, the head on all steps together
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from statistics import median

import torch

from flowportrait.models.arflow import load_generator
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.config import Recipe
from flowportrait.rl.objectives.interface import Advantage, LossInputs
from flowportrait.rl.objectives.ratio import ClippedRatio
from flowportrait.rl.plan import AllSteps
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.rollout import EvaluationPoints, Trajectory
from flowportrait.rl.task import SpeechItem, TalkingTask
from flowportrait.rl.trainer import Trainer

OBJECTIVE = ClippedRatio(kl_weight=0.0)


class Slow:
    """A reward that takes as long as it is told, as a judge elsewhere does."""

    name = "slow"
    needs = frozenset({"motion"})

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, batch: RewardBatch) -> Score:
        time.sleep(self.seconds * len(batch))
        return all_valid(batch.motion.mean((1, 2)))


def trainer(recipe: Recipe, reward: Slow) -> Trainer:
    policy = load_generator("sft")
    speech = [SpeechItem(torch.randn(1200, 80, generator=torch.Generator().manual_seed(i)), 0) for i in range(4)]
    task = TalkingTask(speech, recipe.frames, None, policy.config.chunk)
    return Trainer(policy, task, recipe, CompositeReward((reward,), {"slow": 1.0}))


def step_loop_cache(run: Trainer, trajectory: Trajectory, learn: Callable[..., None]) -> None:
    for step in range(trajectory.x.shape[2]):
        session = run.policy.session(trajectory.condition)
        states = []
        for chunk in range(trajectory.latents.shape[1]):
            states.append(session.context())
            session.append(trajectory.latents[:, chunk])
        learn(torch.stack(states, 1), slice(step, step + 1))


def step_loop_parallel(run: Trainer, trajectory: Trajectory, learn: Callable[..., None]) -> None:
    for step in range(trajectory.x.shape[2]):
        learn(run.policy.contexts(trajectory.condition, trajectory.latents), slice(step, step + 1))


def shared_backbone(run: Trainer, trajectory: Trajectory, learn: Callable[..., None]) -> None:
    context = run.policy.contexts(trajectory.condition, trajectory.latents)
    steps = trajectory.x.shape[2]
    for step in range(steps):
        learn(context, slice(step, step + 1), step < steps - 1)


def engine(run: Trainer, trajectory: Trajectory, learn: Callable[..., None]) -> None:
    learn(run.policy.contexts(trajectory.condition, trajectory.latents), slice(None))


VARIANTS = {
    "step loop, cache": step_loop_cache, "step loop, parallel": step_loop_parallel,
    "shared backbone": shared_backbone, "engine": engine,
}  # fmt: skip


def backward(run: Trainer, trajectory: Trajectory, old: torch.Tensor, variant: str) -> torch.Tensor:
    """One update's gradient by a variant."""
    advantage = torch.randn(len(trajectory), generator=torch.Generator().manual_seed(1))[:, None, None, None]
    steps = trajectory.x.shape[2]
    run.policy.zero_grad()

    def learn(context: torch.Tensor, part: slice, more: bool = False) -> None:
        x, sigma = trajectory.x[:, :, part], trajectory.sigma[..., part]
        own = replace(
            trajectory, x=x, sigma=sigma, noise=trajectory.noise[:, :, part], step=trajectory.step[:, part],
            trainable=trajectory.trainable[:, :, part],
            coefficients=type(trajectory.coefficients)(*(c[:, :, part] for c in trajectory.coefficients)),
        )  # fmt: skip
        live = run.policy.velocity(x, sigma, context[:, :, None])
        evidence = LossInputs(own, Advantage(advantage), EvaluationPoints(x, sigma), live, {"old": old[:, :, part]})
        (OBJECTIVE(evidence).total * x.shape[2] / steps).backward(retain_graph=more)

    VARIANTS[variant](run, trajectory, learn)
    return torch.cat([p.grad.flatten() for p in run.policy.parameters() if p.grad is not None])


def ladder(repeats: int, steps: int) -> dict[str, object]:
    """Every variant's time for one update, in units of the engine's."""
    recipe = replace(find_recipe("flow-grpo"), groups=2, group_size=8, plan=AllSteps(steps=steps))
    run = trainer(recipe, Slow(0.0))
    trajectory = run.collect().trajectory
    with torch.no_grad():
        old = run.velocity(trajectory)
    reference = backward(run, trajectory, old, "engine")
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    apart: dict[str, float] = {}
    for _ in range(repeats):
        for name in VARIANTS:
            begun = time.process_time()
            gradient = backward(run, trajectory, old, name)
            seconds[name].append(time.process_time() - begun)
            apart[name] = float((gradient - reference).norm() / reference.norm())
    assert max(apart.values()) < 1e-5, apart
    times = {name: median(values) for name, values in seconds.items()}
    ratios = {name: round(value / times["engine"], 2) for name, value in times.items()}
    names = list(VARIANTS)
    shares = {f"{a} -> {b}": round(times[a] / times[b], 2) for a, b in pairwise(names)}
    return {"times the engine's": ratios, "factors": shares, "gradients apart": apart}


def scaling(repeats: int) -> dict[str, dict[str, float]]:
    """Cost of acting and of an update against clip length, group size and steps, in units of the first of each."""
    base = replace(find_recipe("flow-grpo"), groups=1, group_size=8, updates=1)
    sweeps: dict[str, dict[str, Recipe]] = {
        "frames": {str(n): replace(base, frames=n) for n in (36, 72, 144)},
        "group_size": {str(n): replace(base, group_size=n) for n in (4, 8, 16)},
        "steps": {str(n): replace(base, plan=AllSteps(steps=n)) for n in (3, 6, 12)},
    }
    result: dict[str, dict[str, float]] = {}
    for what, recipes in sweeps.items():
        costs: dict[str, list[tuple[float, float]]] = {name: [] for name in recipes}
        runs = {name: trainer(recipe, Slow(0.0)) for name, recipe in recipes.items()}
        for _ in range(repeats):
            for name, run in runs.items():
                begun = time.process_time()
                batch = run.collect()
                acted = time.process_time()
                run.update(batch.trajectory, run.credit(batch)[0])
                costs[name].append((acted - begun, time.process_time() - acted))
        for number, phase in enumerate(("rollout", "update")):
            times = {name: median(row[number] for row in rows) for name, rows in costs.items()}
            first = next(iter(times.values()))
            result[f"{phase} against {what}"] = {name: round(value / first, 2) for name, value in times.items()}
    return result


def overlap() -> dict[str, float]:
    """Share of a slow reward's time that the next piece's rollout hides, by number of pieces; the reward takes as
    long as acting does."""
    hidden = {}
    for pieces in (1, 2, 4):
        recipe = replace(find_recipe("flow-grpo"), groups=4, group_size=8, rollout_chunks=pieces)
        acting = trainer(recipe, Slow(0.0)).collect().seconds
        seconds = trainer(recipe, Slow(acting["seconds/rollout"] / 32)).collect().seconds
        hidden[str(pieces)] = round(1 - seconds["seconds/waiting"] / seconds["seconds/reward"], 2)
    return hidden


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        **{f"one update, {steps} steps": ladder(given.repeats, steps) for steps in (6, 11)},
        "cost": scaling(given.repeats),
        "reward hidden by overlap": overlap(),
    }
    print(json.dumps(report, indent=1))
