"""A student comes to draw in one step what its teacher draws in many, guided; and is taught only what is better."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from flowportrait.errors import BadInput
from flowportrait.flow.noise import NoiseKey
from flowportrait.flow.schedules import noise_schedule, solve_ode
from flowportrait.rendering.motion_filters import join_chunks
from flowportrait.rewards.interface import Score, all_valid
from flowportrait.rl.config import Recipe
from flowportrait.rl.credit import BatchCredit, CreditConfig, credit_batch
from flowportrait.rl.method_stages import TEACHER, Teacher, mask_teacher_better
from flowportrait.rl.objectives.interface import Advantage
from flowportrait.rl.objectives.matching import Distil
from flowportrait.rl.objectives.ratio import ClippedRatio
from flowportrait.rl.plan import OdePlan
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.rollout import EvaluationPoints
from flowportrait.rl.trainer import Trainer
from tests.rl.test_posttrain import tiny_policy, trainer


def small(name: str, **changes: Any) -> Recipe:
    """A recipe cut to the tiny policy."""
    cut: dict[str, Any] = {"plan": OdePlan(steps=1, keep_path=True), "groups": 3, "group_size": 4, "frames": 16}
    return replace(find_recipe(name), updates=2, **(cut | changes))


def taught(name: str, **changes: Any) -> Trainer:
    return trainer(small(name, **changes), size=0.3)


def test_a_teachers_mean_velocity_is_where_its_own_solver_ends() -> None:
    run = taught("distil", plan=OdePlan(steps=2, keep_path=True))
    trajectory = run.collect().trajectory
    points = Distil().points(trajectory, NoiseKey(0))
    with torch.no_grad(), run.use_weights(TEACHER):
        assert run.policy.config.guidance == 1.5
        mean = run.velocity(trajectory, points, 4)
        context = run.policy.contexts(trajectory.condition, trajectory.latents)
        for step, (high, low) in enumerate(((1.0, 0.5), (0.5, 0.0))):
            levels = torch.linspace(high, low, 5)
            end = solve_ode(partial(run.policy.velocity, context=context), trajectory.x[:, :, step], levels)
            assert torch.allclose(trajectory.x[:, :, step] + (low - high) * mean[:, :, step], end, atol=1e-5)


def test_a_student_without_guidance_comes_to_draw_in_one_step_what_its_teacher_draws_in_many() -> None:
    run = taught("distil", teacher=Teacher(samples=0), groups=1, frames=8, learning_rate=1e-2)
    batch = run.collect()
    lesson = run.freeze(batch.trajectory, run.credit(batch)[0])
    gap = [run.learn([lesson], len(batch.trajectory))["distance"] for _ in range(50)]
    assert gap[-1] < 0.02 * gap[0]
    assert (run.policy.config.steps, run.policy.config.guidance) == (1, 1.0)


def test_the_witnesses_start_from_the_noise_of_the_first_siblings() -> None:
    run = taught("distil")
    batch = run.collect()
    condition = run.task.condition(run.policy, run.task.draw(3, 0, 0))
    with torch.no_grad(), run.use_weights(TEACHER):
        session, made = run.policy.session(condition), []
        for chunk in range(condition.chunks):
            drawn = (run.noise_key.normal(run.policy.latent_dim, "start", 4 * group, chunk) for group in range(3))
            noise = torch.stack(list(drawn))
            field = partial(run.policy.velocity, context=session.context())
            x = solve_ode(field, run.policy.initial_state(noise), noise_schedule(8))
            made.append(session.append(x))
    config = run.policy.config
    lift = join_chunks(torch.cat(made, 1), config.chunk, config.ease)[..., 0].mean(1)
    assert torch.allclose(batch.comparison_scores["lift"].value[::2], lift, atol=0.05)


def compared(own: Score, group: torch.Tensor, taught: Score, chunks: int) -> BatchCredit:
    """Credit of a student's samples beside its teacher's, all on this process."""
    rows = torch.arange(len(group))
    return credit_batch({"lift": own}, {"lift": taught}, group, rows, chunks, {"lift": 1.0}, CreditConfig())


def test_only_what_the_teacher_does_better_is_learned() -> None:
    own, shown = all_valid(torch.tensor([0.0, 3.0, 5.0, 1.0])), all_valid(torch.tensor([1.0, 2.0]))
    credit = compared(own, torch.tensor([0, 0, 1, 1]), shown, 2)
    better, metrics = mask_teacher_better(credit)
    assert better.tolist() == [[True] * 2, [False] * 2, [False] * 2, [True] * 2]
    assert metrics["reward/lift"] == 2.25
    assert metrics["teacher/lift"] == 1.5
    trajectory = taught("distil").collect().trajectory
    gated, _ = Teacher().adjust_advantage(Advantage(credit.local.advantage[:, :, None, None]), trajectory, credit)
    weight = gated.value.exp()
    assert (weight[1] == 0).all()
    assert (weight[0] > 0).all()


def test_a_witness_that_could_not_be_judged_teaches_nothing() -> None:
    """Its zero would pass for an average performance and be better than the worst of the student's."""
    own, group = all_valid(torch.tensor([0.0, 3.0, 0.0, 3.0])), torch.tensor([0, 0, 1, 1])
    shown = all_valid(torch.tensor([torch.nan, torch.nan, torch.nan, 2.0]))
    better, _ = mask_teacher_better(compared(own, group, shown, 1))
    assert better[:, 0].tolist() == [False, False, True, False]


def test_a_start_is_drawn_as_delivered_once_it_has_taught() -> None:
    policy = taught("distil").policy
    student, views = Teacher().prepare_policy(policy, 2)
    assert student.config.steps == 2
    with views[TEACHER].settings():
        assert student.config.steps == 1, "what was delivered last is the next teacher"
    assert student.config.steps == 2
    with pytest.raises(BadInput, match="cannot be distilled"):
        Teacher().prepare_policy(torch.nn.Linear(1, 1), 1)


def test_a_policy_that_is_distilled_keeps_its_own_settings_and_shares_its_weights() -> None:
    policy = tiny_policy()
    before = policy.config
    student, _ = Teacher().prepare_policy(policy, 1)
    assert policy.config == before
    assert (student.config.steps, student.config.guidance) == (1, 1.0)
    assert all(a is b for a, b in zip(policy.parameters(), student.parameters(), strict=True))


def test_an_objective_that_needs_a_teacher_has_one() -> None:
    with pytest.raises(BadInput, match="teacher"):
        replace(find_recipe("flow-grpo"), objective=Distil())
    with pytest.raises(BadInput, match="teacher"):
        small("distil", objective=ClippedRatio())


def test_a_teacher_needs_to_be_told_how_far_to_go() -> None:
    run = taught("distil")
    trajectory = run.collect().trajectory
    with pytest.raises(AssertionError, match="noise level at which it ends"):
        run.velocity(trajectory, EvaluationPoints(trajectory.x, trajectory.sigma), 2)
