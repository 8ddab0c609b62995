"""Claims about the recipe that follows the gradient of rewards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flowportrait.errors import BadInput
from flowportrait.flow.noise import NoiseKey
from flowportrait.flow.schedules import solve_ode
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid
from flowportrait.rl.objectives.direct import Direct, RewardGradients, gradient_through_history
from flowportrait.rl.objectives.interface import Advantage, LossInputs
from flowportrait.rl.plan import AllSteps, OdePlan, Plan
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.rollout import EvaluationPoints, Trajectory
from tests.rl.test_objectives import BATCH, trajectory
from tests.rl.test_posttrain import trainer
from tests.rl.test_recipes import CHANCE, rise, small

SIZE = 10


@dataclass
class Valley:
    """A reward of latents with one optimum, and one that looks at the first element alone."""

    name: str = "valley"
    needs: frozenset[str] = frozenset({"motion"})
    optimum: float = 2.0

    def __call__(self, batch: RewardBatch) -> Score:
        return all_valid(-(batch.motion[..., 0] - self.optimum).square().mean(1))


def with_gradient(rewards: list[Any], weights: dict[str, float], drawn: Trajectory) -> torch.Tensor:
    """The gradients that the stage adds, where motion is the latents themselves."""

    def batch(policy: Any, seen: Trajectory, prompts: Any) -> RewardBatch:
        return RewardBatch(seen.latents, torch.zeros(len(seen), 1, 80))

    region = torch.zeros(SIZE)
    region[:5] = 1
    rollouts: Any = SimpleNamespace(
        prompts=SimpleNamespace(select=lambda rows: None), policy=None, average=torch.clone, noise_key=NoiseKey(0),
        task=SimpleNamespace(batch=batch, regions={"mouth": region}),
        rewards=SimpleNamespace(rewards=rewards, weights=weights),
    )  # fmt: skip
    with torch.no_grad():
        found = RewardGradients(limit=100).augment_rollout(drawn, torch.arange(2), None, rollouts)  # type: ignore[arg-type]
    assert found.reward_gradient is not None
    return found.reward_gradient


def test_the_gradient_is_that_of_finite_differences_up_to_its_size() -> None:
    drawn = trajectory(torch.Generator().manual_seed(0))
    reward = Valley()
    found = with_gradient([reward], {"valley": 1.0}, drawn)
    expected = torch.zeros_like(drawn.latents, dtype=torch.double)
    for place in range(drawn.latents.shape[1]):
        for sign in (1, -1):
            moved = drawn.latents.double().clone()
            moved[:, place, 0] += sign * 1e-4
            value = reward(RewardBatch(moved, torch.zeros(BATCH, 1, 80))).value
            expected[:, place, 0] += sign * value / 2e-4
    assert torch.allclose((found / found.norm()).double(), expected / expected.norm(), atol=1e-4)
    assert float(found[..., 1:].abs().max()) == 0, "what the reward does not read is left alone"


def test_weights_compare_rewards_of_any_scale() -> None:
    drawn = trajectory(torch.Generator().manual_seed(0))

    @dataclass
    class Large(Valley):
        def __call__(self, batch: RewardBatch) -> Score:
            return all_valid(1000 * super().__call__(batch).value)

    one, other = (with_gradient([kind()], {"valley": 1.0}, drawn) for kind in (Valley, Large))
    assert torch.allclose(one, other, atol=1e-5)


def test_the_first_step_raises_the_reward_as_fast_as_any_step_of_its_length() -> None:
    """The expected reward of a policy with one velocity per element, whose samples are x1 - v, has a known gradient."""
    drawn = trajectory(torch.Generator().manual_seed(0))
    drawn = replace(drawn, reward_gradient=with_gradient([Valley()], {"valley": 1.0}, drawn))
    objective = Direct(kl_weight=0.0)
    points = objective.points(drawn, NoiseKey(0))
    offset = torch.zeros(SIZE, requires_grad=True)
    old = torch.zeros(points.x.shape)
    loss = objective(LossInputs(drawn, Advantage(torch.ones(BATCH, 1, 1, 1)), points, old + offset, {"old": old})).total
    descent = -torch.autograd.grad(loss, offset)[0]
    # d/dv E R(x0 - v) by finite differences
    ascent = torch.zeros(SIZE, dtype=torch.double)
    for element in range(SIZE):
        for sign in (1, -1):
            moved = drawn.latents.double().clone()
            moved[..., element] -= sign * 1e-4
            ascent[element] += float(sign * Valley()(RewardBatch(moved, torch.zeros(BATCH, 1, 80))).value.mean() / 2e-4)
    assert torch.nn.functional.cosine_similarity(descent.double(), ascent, dim=0) > 0.999


def test_nothing_moves_farther_than_the_step() -> None:
    drawn = trajectory(torch.Generator().manual_seed(0))
    gradient = with_gradient([Valley()], {"valley": 1.0}, drawn)
    objective = Direct(kl_weight=0.0, step=0.2)
    drawn = replace(drawn, reward_gradient=gradient)
    points: EvaluationPoints = objective.points(drawn, NoiseKey(0))
    old = torch.zeros(points.x.shape)
    there = (old - 0.2 * gradient[:, :, None]).requires_grad_()
    seen = LossInputs(drawn, Advantage(torch.ones(BATCH, 1, 1, 1)), points, there, {"old": old})
    loss = objective(seen)
    assert float(loss.total.detach()) == pytest.approx(0, abs=1e-9)
    assert loss.metrics["moved"] == pytest.approx(float(gradient.square().mean()), rel=1e-4)


def test_random_rewards_have_random_gradients_of_the_same_size_in_their_region() -> None:
    drawn = trajectory(torch.Generator().manual_seed(0))
    found = with_gradient([SimpleNamespace(name="chance_mouth")], {"chance_mouth": 1.0}, drawn)
    assert float(found[..., 5:].abs().max()) == 0
    assert float(found.square().mean().sqrt()) == pytest.approx(1, abs=0.05)


def test_the_control_raises_nothing() -> None:
    recipe = small(find_recipe("direct"))
    gradients: list[torch.Tensor] = []

    @dataclass(frozen=True)
    class Swapped(RewardGradients):
        """The gradients of other samples, each with a random sign."""

        def augment_rollout(self, *arguments: Any) -> Trajectory:
            found = super().augment_rollout(*arguments)
            assert found.reward_gradient is not None
            draw = torch.Generator().manual_seed(len(gradients))
            sign = 2.0 * torch.randint(2, (len(found), 1, 1), generator=draw) - 1
            gradients.append(sign)
            return replace(found, reward_gradient=found.reward_gradient * sign)

    assert abs(rise(replace(recipe, stages=(Swapped(),)))) < CHANCE


def test_a_reward_without_a_gradient_is_refused_with_the_way_out() -> None:
    @dataclass
    class Flat(Valley):
        name: str = "flat"

        def __call__(self, batch: RewardBatch) -> Score:
            return all_valid(super().__call__(batch).value.detach())

    with pytest.raises(BadInput, match="'flat' has no gradient"):
        with_gradient([Flat()], {"flat": 1.0}, trajectory(torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("reward", ["sync", "crowd_mouth", "preference"])
def test_the_rewards_of_motion_have_gradients(reward: str) -> None:
    from flowportrait.rewards.registry import load_reward

    torch.manual_seed(0)
    motion = torch.randn(4, 48, 30).cumsum(1).mul(0.2).requires_grad_()
    value = load_reward(reward)(RewardBatch(motion, torch.randn(4, 192, 80))).value
    (gradient,) = torch.autograd.grad(value.sum(), motion)
    assert gradient.isfinite().all()
    assert gradient[..., :16].abs().max() > 0


def rolled_out() -> tuple[Any, Trajectory, Plan]:
    """A trainer whose generator heeds its history, a rollout without noise, and its plan."""
    recipe = replace(small(find_recipe("rollout-gradient")), groups=2, group_size=2)
    run = trainer(recipe, size=0.3)
    run.policy.config = replace(run.policy.config, horizon=3)  # the fourth chunk is handed the last frame alone
    drawn = run.collect().trajectory
    plan = recipe.plan(recipe.seed, 0, recipe.groups, drawn.latents.shape[1])
    return run, drawn, plan


@torch.no_grad()
def rollout_from(run: Any, drawn: Trajectory, plan: Plan, offsets: torch.Tensor) -> torch.Tensor:
    """The latents ``[B, N, D]`` of the same noise where every chunk is moved."""
    session, chunks = run.policy.session(drawn.condition), []
    for chunk in range(drawn.latents.shape[1]):
        field = partial(run.policy.velocity, context=session.context())
        x = solve_ode(field, drawn.x[:, chunk, 0], plan.sigmas.to(drawn.latents)) + offsets[:, chunk]
        session.append(x)
        chunks.append(x)
    return torch.stack(chunks, 1)


def test_the_gradient_through_the_history_is_that_of_finite_differences_of_whole_rollouts() -> None:
    run, drawn, plan = rolled_out()
    draw = torch.Generator().manual_seed(0)
    linear = torch.randn(drawn.latents.shape, generator=draw)
    with torch.enable_grad():
        found = gradient_through_history(run.policy, drawn, plan, linear)
    for chunk in (0, 1, 3):
        along = torch.randn(drawn.latents.shape[2], generator=draw)
        ends = []
        for sign in (1, -1):
            offsets = torch.zeros_like(drawn.latents)
            offsets[:, chunk] = sign * 1e-2 * along
            ends.append((rollout_from(run, drawn, plan, offsets).double() * linear).sum((1, 2)))
        slope = (ends[0] - ends[1]) / 2e-2
        assert torch.allclose(slope, (found[:, chunk] * along).sum(1).double(), rtol=1e-2, atol=1e-2)
    assert torch.allclose(found[:, -1], linear[:, -1]), "the last chunk has nothing after it"
    assert not torch.allclose(found[:, 0], linear[:, 0], rtol=1e-2)


def test_without_later_chunks_the_gradient_is_the_chunks_own() -> None:
    run, drawn, plan = rolled_out()
    first = replace(drawn, latents=drawn.latents[:, :1], x=drawn.x[:, :1])
    gradient = torch.randn_like(first.latents)
    with torch.enable_grad():
        found = gradient_through_history(run.policy, first, plan, gradient)
    assert torch.equal(found, gradient)


def test_the_repeated_rollout_is_the_rollout() -> None:
    run, drawn, plan = rolled_out()
    assert torch.allclose(rollout_from(run, drawn, plan, torch.zeros_like(drawn.latents)), drawn.latents, atol=1e-5)


@pytest.mark.parametrize("plan", [OdePlan(4), AllSteps(4)])
def test_a_rollout_that_cannot_be_repeated_is_refused_with_the_way_out(plan: Any) -> None:
    recipe = replace(small(find_recipe("rollout-gradient")), plan=plan)
    with pytest.raises(BadInput, match=r"OdePlan with plan\.keep_path=true"):
        trainer(recipe).step()
