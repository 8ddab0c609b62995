"""Claims about distillation by matching distributions: gradients in closed form, limits, the critic, its state."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flowportrait.errors import BadInput
from flowportrait.flow.noise import NoiseKey
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.config import Recipe
from flowportrait.rl.method_stages import TEACHER
from flowportrait.rl.objectives.direct import RewardGradients
from flowportrait.rl.objectives.distribution import (
    CRITIC,
    Critic,
    DistributionMatching,
    OutputMatching,
    TransitionTrust,
    noised_outputs,
    output_gradient,
)
from flowportrait.rl.objectives.interface import Advantage, LossInputs
from flowportrait.rl.objectives.matching import RWR
from flowportrait.rl.plan import OdePlan
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.rollout import EvaluationPoints, Trajectory
from flowportrait.rl.trainer import Trainer
from flowportrait.training.state import read_state, write_state
from tests.rl.test_objectives import trajectory
from tests.rl.test_posttrain import Lift, tiny_policy, trainer, weights
from tests.rl.test_recipes import LEARNED

TEACHERS = 0.5, 1.5
"""Mean and spread of the teacher of the closed forms."""


def small(name: str = "dmd", steps: int = 2, **changes: Any) -> Recipe:
    """A recipe cut to the tiny policy."""
    cut: dict[str, Any] = {"groups": 2, "group_size": 3, "frames": 16, "learning_rate": 1e-3}
    cut |= {"critic": Critic(steps=2, states=2)}
    return replace(find_recipe(name), plan=OdePlan(steps, keep_path=True), **(cut | changes))


def gaussian_velocity(x: torch.Tensor, sigma: torch.Tensor, mean: Any, spread: Any) -> torch.Tensor:
    """The velocity E[ε − x₀ | x] of the path whose clean samples are normal."""
    keep = 1 - sigma
    off = (x - keep * mean) / (keep**2 * spread**2 + sigma**2)
    return sigma * off - (mean + keep * spread**2 * off)


def one_step(sample: torch.Tensor, noise: torch.Tensor) -> Trajectory:
    """A rollout of one step from noise ``[B, D]`` to samples ``[B, D]``."""
    count = torch.arange(len(sample))
    made = trajectory(torch.Generator().manual_seed(0)).select(torch.zeros(len(sample), dtype=torch.long))
    x, x_next = noise[:, None, None], sample[:, None, None]
    one = torch.ones_like(x[..., :1])
    return replace(
        made, latents=sample[:, None], x=x, x_next=x_next, noise=torch.zeros_like(x), sigma=one[..., 0],
        coefficients=type(made.coefficients)(one, -one, torch.zeros_like(one)), group=count, sample=count,
        step=torch.zeros(len(sample), 1, dtype=torch.long), trainable=torch.zeros_like(one[..., 0], dtype=torch.bool),
    )  # fmt: skip


def test_what_critic_and_teacher_differ_by_is_the_gradient_of_the_divergence() -> None:
    """dKL(t)/dm by finite differences of the closed form, times (t / (1−t))²."""
    level, mean, spread = 0.6, -0.3, 0.8
    draw = torch.Generator().manual_seed(0)
    clean = mean + spread * torch.randn(200_000, generator=draw, dtype=torch.double)
    x, sigma = (
        (1 - level) * clean + level * torch.randn(200_000, generator=draw, dtype=torch.double),
        torch.tensor(level),
    )
    fake, real = (x - level * gaussian_velocity(x, sigma, *of) for of in ((mean, spread), TEACHERS))

    def divergence(at: float) -> float:
        own, other = ((1 - level) ** 2 * s**2 + level**2 for s in (spread, TEACHERS[1]))
        apart = (1 - level) * (at - TEACHERS[0])
        return 0.5 * (math.log(other / own) + (own + apart**2) / other - 1)

    slope = (divergence(mean + 1e-5) - divergence(mean - 1e-5)) / 2e-5
    assert float((fake - real).mean()) == pytest.approx((level / (1 - level)) ** 2 * slope, rel=0.02)


def follow(temperature: float | None, free_spread: bool, tilt: float = 0.0) -> tuple[float, float]:
    """Where a student m + s·z ends whose reward is x, with exact critic and teacher; the normaliser is 1."""
    mean = torch.tensor(-0.5, requires_grad=True)
    spread = torch.tensor(0.7, requires_grad=free_spread)
    objective = DistributionMatching(temperature, max_weight=1e9, tilt=tilt)
    optimizer = torch.optim.SGD([mean, *([spread] if free_spread else [])], lr=0.2)
    draw = torch.Generator().manual_seed(1)
    ends = []
    for turn in range(150):
        noise = torch.randn(1024, 1, generator=draw)
        noise = torch.cat([noise, -noise])
        sample = mean + spread * noise
        rollout = one_step(sample.detach(), noise)
        level = torch.full_like(noise[:, None, None, 0], 0.5)
        eps = torch.randn(len(noise), 1, 1, 1, generator=draw)
        points = EvaluationPoints(0.5 * rollout.outputs + 0.5 * eps, level)
        fake, real = (
            points.x - 0.5 * gaussian_velocity(points.x, level[..., None], *of)
            for of in ((mean.detach(), spread.detach()), TEACHERS)
        )
        rollout = replace(rollout, score_gradient=fake - real, reward_gradient=torch.ones_like(rollout.latents))
        live = (noise - sample)[:, None, None]
        advantage = Advantage(sample.detach()[:, :, None, None])
        seen = LossInputs(rollout, advantage, EvaluationPoints(rollout.x, rollout.sigma), live, {})
        optimizer.zero_grad()
        objective(seen).total.backward()
        optimizer.step()
        if turn >= 100:
            ends.append((float(mean.detach()), float(spread.detach())))
    means, spreads = zip(*ends, strict=True)
    return sum(means) / len(means), sum(spreads) / len(spreads)


def test_a_student_that_can_comes_to_the_teacher_with_and_without_weights() -> None:
    for temperature in (None, 2.0):
        mean, spread = follow(temperature, free_spread=True)
        assert mean == pytest.approx(TEACHERS[0], abs=0.08)
        assert spread == pytest.approx(TEACHERS[1], abs=0.08)


def test_weights_move_a_student_that_cannot_by_the_missing_variance_over_the_temperature() -> None:
    """E[w·(score_fake − score_real)] = 0 at x_t gives m = M + (s²/β)·(1−t)²·(S² − s²) / ((1−t)²·s² + t²), which is
    (S² − s²)/β without noise; without weights m = M."""
    plain, _ = follow(None, free_spread=False)
    weighted, _ = follow(2.0, free_spread=False)
    assert plain == pytest.approx(TEACHERS[0], abs=0.05)
    shift = 0.7**2 / 2.0 * 0.25 * (TEACHERS[1] ** 2 - 0.7**2) / (0.25 * 0.7**2 + 0.25)
    assert weighted - TEACHERS[0] == pytest.approx(shift, abs=0.06)
    assert shift > 0.25


def test_a_tilt_moves_a_student_to_where_teacher_and_rewards_balance() -> None:
    """E[μ_fake − μ_real] = t²·(m − M) / ((1−t)²·S² + t²) equals tilt, for the reward x, which moves no spread."""
    mean, spread = follow(None, free_spread=True, tilt=0.1)
    assert mean - TEACHERS[0] == pytest.approx(0.1 * (0.25 * TEACHERS[1] ** 2 + 0.25) / 0.25, abs=0.08)
    assert spread == pytest.approx(TEACHERS[1], abs=0.08)


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_the_first_gradient_is_the_scores_difference_times_the_weight(temperature: float | None) -> None:
    draw = torch.Generator().manual_seed(0)
    sample, noise = torch.randn(6, 4, generator=draw), torch.randn(6, 4, generator=draw)
    rollout = one_step(sample, noise)
    gradient = torch.randn(6, 1, 1, 4, generator=draw)
    value = torch.randn(6, 1, 1, 1, generator=draw)
    live = (noise - sample)[:, None, None].double().requires_grad_()
    objective = DistributionMatching(temperature)
    points = EvaluationPoints(rollout.x, rollout.sigma)
    seen = LossInputs(replace(rollout, score_gradient=gradient), Advantage(value), points, live, {})
    (slope,) = torch.autograd.grad(objective(seen).total, live)
    weight = torch.ones_like(value) if temperature is None else (value / temperature).exp().clamp_max(10)
    assert torch.allclose(slope, -(weight * gradient / gradient.numel()).double(), atol=1e-6)
    differences = torch.zeros_like(slope)
    for place in range(live.numel()):
        values = []
        for sign in (1, -1):
            moved = live.detach().clone()
            moved.view(-1)[place] += sign * 1e-4
            values.append(objective(replace(seen, live=moved)).total)
        differences.view(-1)[place] = (values[0] - values[1]) / 2e-4
    assert torch.allclose(slope, differences, atol=1e-6)


def test_a_student_as_wide_as_what_the_teacher_draws_from_wide_noise_is_left_alone() -> None:
    """With clean samples of unit spread the teacher's flow scales noise: from noise of spread s it draws spread s."""
    draw = torch.Generator().manual_seed(0)
    wide = 1.5

    def gap(spread: float, noise_spread: float) -> float:
        sample = spread * torch.randn(4000, 1, generator=draw)
        points = noised_outputs(one_step(sample, sample), 2, NoiseKey(0), 0, lambda unit: noise_spread * unit)
        sigma = points.sigma[..., None]
        # The critic's mean velocity, of samples N(0, spread²) and noise N(0, noise_spread²).
        over = (1 - sigma) ** 2 * spread**2 + sigma**2 * noise_spread**2
        fake = points.x * (sigma * noise_spread**2 - (1 - sigma) * spread**2) / over
        real = gaussian_velocity(points.x, sigma, 0.0, 1.0)
        return float(output_gradient(points, fake, real, sample[:, None, None])[0].abs().mean())

    assert gap(wide, wide) < 1e-5
    assert gap(1.0, 1.0) < 1e-5
    assert gap(wide, 1.0) > 0.1
    assert gap(1.0, wide) > 0.1


def test_gradients_are_divided_by_the_distance_to_the_teachers_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    sample, noise = torch.randn(5, 3, generator=draw), torch.randn(5, 3, generator=draw)
    points = noised_outputs(one_step(sample, noise), 2, NoiseKey(0), 0, torch.clone)
    fake, real = torch.randn(2, *points.x.shape, generator=draw)
    found = output_gradient(points, fake, real, sample[:, None, None])[0][:, 0, 0]
    sigma = points.sigma[:, 0, :, None]
    mean_fake, mean_real = (points.x[:, 0] - sigma * v[:, 0] for v in (fake, real))
    by_hand = (mean_fake - mean_real) / (sample[:, None] - mean_real).abs().mean(-1, keepdim=True)
    assert torch.allclose(found, by_hand.mean(1), atol=1e-5)


def steps_taken(recipe: Recipe, count: int = 2) -> list[torch.Tensor]:
    run = trainer(recipe, size=0.3)
    for _ in range(count):
        run.step()
    return weights(run, "live")


def test_weights_of_an_endless_temperature_are_none() -> None:
    plain, endless = (small(objective=DistributionMatching(t)) for t in (None, 1e30))
    assert all(torch.equal(a, b) for a, b in zip(steps_taken(plain), steps_taken(endless), strict=True))
    other = steps_taken(small(objective=DistributionMatching(0.5)))
    assert any(not torch.equal(a, b) for a, b in zip(steps_taken(plain), other, strict=True))


def test_a_critic_that_is_the_teacher_teaches_nothing() -> None:
    policy = tiny_policy(0.3)
    policy.config = replace(policy.config, guidance=1.0)
    made = trainer(small(critic=Critic(steps=0)))
    run = Trainer(policy, made.task, made.recipe, CompositeReward((Lift(),), {"lift": 1.0}))
    record = run.step()
    assert record["critic/gap"] == 0.0
    assert record["grad_norm"] < 1e-5


def test_the_critic_learns_the_students_outputs_and_the_student_does_not_move() -> None:
    run = trainer(small(critic=Critic(learning_rate=3e-3)), size=0.3)
    rollout, key = run.collect().trajectory, run.noise_key
    before = [value.clone() for value in weights(run, "live")]

    def error(role: str) -> float:
        def points(part: Trajectory) -> EvaluationPoints:
            return noised_outputs(part, 8, key, 99, run.policy.initial_state)

        return float((run.role_velocity(role, rollout, points) - points(rollout).target).square().mean())

    start = error(CRITIC)
    assert start == pytest.approx(error("live"), rel=1e-5), "the critic begins as the student"
    for step in range(40):
        run.learn_role(CRITIC, OutputMatching(step=step, start=run.policy.initial_state), rollout)
    assert error(CRITIC) < 0.9 * start
    assert all(torch.equal(a, b) for a, b in zip(before, weights(run, "live"), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(run, "ref"), strict=True))
    assert error(TEACHER) != pytest.approx(error("live"), rel=1e-3), "the teacher keeps its guidance"


def test_the_outputs_of_a_rollout_are_what_its_weights_predict() -> None:
    run = trainer(small(steps=3), size=0.3)
    rollout = run.collect().trajectory
    with torch.no_grad():
        velocity = run.velocity(rollout)
    predicted = rollout.x - rollout.sigma[..., None] * velocity
    assert torch.allclose(rollout.outputs, predicted, atol=1e-4)
    assert torch.allclose(rollout.outputs[:, :, -1], rollout.latents, atol=1e-5)


def test_a_resumed_run_has_the_bits_of_student_and_critic(tmp_path: Path) -> None:
    straight, first = (trainer(small(), size=0.3) for _ in range(2))
    for _ in range(3):
        straight.step()
    first.step()
    write_state(first, tmp_path / "state")
    second = trainer(small(), size=0.3)
    read_state(second, tmp_path / "state")
    second.step()
    second.step()
    for role in ("live", "ema", CRITIC):
        assert all(torch.equal(a, b) for a, b in zip(weights(straight, role), weights(second, role), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(weights(second, CRITIC), weights(second, "live"), strict=True))
    write_state(trainer(replace(small(), critic=None, objective=RWR())), tmp_path / "plain")
    with pytest.raises(BadInput, match="not of this model and recipe: they differ in critic/"):
        read_state(second, tmp_path / "plain")


def test_how_the_work_is_cut_changes_neither_student_nor_critic() -> None:
    whole, cut = (trainer(replace(small(), micro_batch=size), size=0.3) for size in (None, 2))
    rollout = whole.collect().trajectory
    gradients = []
    for run in (whole, cut):
        run.role_optimizers[CRITIC].step = lambda: None  # type: ignore[method-assign]
        run.learn_role(CRITIC, OutputMatching(), rollout)
        gradients.append(torch.cat([p.grad.flatten() for p in run.roles.policy.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


def test_what_does_not_go_together_is_refused_with_the_way_out() -> None:
    with pytest.raises(BadInput, match=r"set plan\.keep_path=true"):
        trainer(replace(small(), plan=OdePlan(2))).step()
    with pytest.raises(BadInput, match="set critic"):
        trainer(replace(small(), critic=None)).step()
    with pytest.raises(BadInput, match="add RewardGradients"):
        trainer(replace(small(), objective=DistributionMatching(tilt=0.1))).step()
    with pytest.raises(BadInput, match="fresh rollouts alone"):
        replace(small(), staleness=1)


def test_a_checkpoint_is_delivered_with_the_students_steps_and_without_guidance() -> None:
    run = trainer(small(steps=1))
    assert (run.policy.config.steps, run.policy.config.guidance) == (1, 1.0)
    assert copy.copy(tiny_policy()).config.guidance != 1.0


def test_the_teacher_is_trusted_less_the_farther_it_leads() -> None:
    trust = TransitionTrust(sharpness=4.0, center=1.5)
    weight = trust.weights(torch.tensor([0.0, 2.0, 3.0, 4.0, 40.0]), torch.tensor(2.0))
    assert weight.tolist() == pytest.approx([1 / (1 + math.exp(-4 * (1.5 - r / 2))) for r in (0, 2, 3, 4, 40)])
    assert weight[2] == 0.5
    assert (weight.diff() < 0).all()


def trusted(trust: TransitionTrust | None) -> tuple[Trajectory, dict[str, float]]:
    run = trainer(small(critic=Critic(steps=2, states=2, trust=trust)), size=0.3)
    found, metrics = run.prepare_update(run.collect().trajectory)
    return found, metrics


def test_a_trust_region_without_a_border_is_none_and_one_that_excludes_all_asks_for_continuity_alone() -> None:
    plain, _ = trusted(None)
    wide, metrics = trusted(TransitionTrust(center=1e6))
    assert plain.score_gradient is not None
    assert torch.equal(wide.score_gradient, plain.score_gradient)
    assert metrics["trust"] == 1.0
    none, metrics = trusted(TransitionTrust(sharpness=1e6, center=0.0))
    assert torch.allclose(none.score_gradient, none.outputs)
    assert metrics["trust"] == 0.0
    half, metrics = trusted(TransitionTrust(sharpness=0.0))
    assert torch.allclose(half.score_gradient, 0.5 * (plain.score_gradient + plain.outputs), atol=1e-6)


def test_continuity_is_a_smaller_change_since_the_last_frame() -> None:
    run = trainer(small(), size=0.3)
    rollout = run.collect().trajectory
    start = rollout.condition.start

    def change(latents: torch.Tensor) -> float:
        motion = torch.cat([start[:, None], run.policy.to_motion(latents, start)], 1)
        return float(motion.diff(dim=1).square().mean())

    assert change(rollout.latents - 0.1 * rollout.outputs[:, :, -1]) < change(rollout.latents)


def test_a_tilted_student_raises_its_reward_and_random_gradients_do_not() -> None:
    def gain(swapped: bool) -> float:
        """What eight iterations add to the reward of later prompts, over plain distribution matching."""
        results = []
        for tilt in (2.0, 0.0):
            stages = (SwappedGradients(),) if swapped else (RewardGradients(),)
            recipe = small("dmd-tilted", group_size=8, stages=stages, objective=DistributionMatching(tilt=tilt))
            run = trainer(replace(recipe, learning_rate=3e-3))
            for _ in range(8):
                run.step()
            run.iteration = 50
            results.append(float(run.collect().scores["lift"].value.mean()))
        return results[0] - results[1]

    learned = gain(False)
    assert learned > LEARNED
    assert abs(gain(True)) < learned / 4


@dataclass(frozen=True)
class SwappedGradients(RewardGradients):
    """The gradients of the rewards, each sample's with a random sign."""

    def augment_rollout(self, trajectory: Trajectory, groups: torch.Tensor, plan: Any, rollouts: Any) -> Trajectory:
        found = super().augment_rollout(trajectory, groups, plan, rollouts)
        assert found.reward_gradient is not None
        draw = torch.Generator().manual_seed(rollouts.noise_key.iteration)
        sign = 2.0 * torch.randint(2, (len(found), 1, 1), generator=draw) - 1
        return replace(found, reward_gradient=found.reward_gradient * sign)
