"""What methods took over from their authors' code: closed forms, finite differences, limits, and published settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

from flowportrait.config import override
from flowportrait.flow.kernels import build_kernel
from flowportrait.flow.noise import NoiseKey
from flowportrait.rl.objectives.interface import Advantage, LossInputs
from flowportrait.rl.objectives.ratio import AWM, KVPO, ClippedRatio
from flowportrait.rl.plan import Branching, SlidingWindow
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.rollout import EvaluationPoints, rollout
from tests.rl.test_objectives import trajectory
from tests.rl.test_posttrain import one_step, trainer
from tests.rl.test_recipes import small


def matching(objective: Any, value: torch.Tensor, moved: float) -> tuple[LossInputs, torch.Tensor]:
    """Random velocities; the live ones are ``moved`` away from those that sampled."""
    draw = torch.Generator().manual_seed(0)
    samples = trajectory(draw)
    points = objective.points(samples, NoiseKey(0))
    old, reference, step = (torch.randn(points.x.shape, generator=draw) for _ in range(3))
    live = (old + moved * step).requires_grad_()
    return LossInputs(samples, Advantage(value), points, live, {"old": old, "ref": reference}), live


def slope(objective: Any, value: torch.Tensor, moved: float = 0.1) -> torch.Tensor:
    seen, live = matching(objective, value, moved)
    return torch.autograd.grad(objective(seen).total, live)[0]


SOME = torch.randn(8, 1, 1, 1, generator=torch.Generator().manual_seed(3))
PLAIN = AWM(kl_weight=0.0)


def test_awm_without_advantages_returns_to_the_average_that_sampled() -> None:
    objective = replace(PLAIN, average_weight=0.7)
    seen, live = matching(objective, torch.zeros_like(SOME), 0.1)
    (found,) = torch.autograd.grad(objective(seen).total, live)
    assert torch.allclose(found, 2 * 0.7 * (live - seen.others["old"]).detach() / live.numel(), atol=1e-9)


def test_awms_generalised_huber_of_power_one_is_the_weight_sigma_and_of_another_power_is_not() -> None:
    sigma, huber, other = (
        slope(replace(PLAIN, weight=weight, huber_power=power), SOME, 0.01)
        for weight, power in (("sigma", 1.0), ("ghuber", 1.0), ("ghuber", 0.25))
    )
    assert torch.allclose(sigma, huber, rtol=1e-3, atol=1e-7)
    assert not torch.allclose(sigma, other, rtol=1e-1, atol=1e-7)


def test_awms_span_divides_advantages() -> None:
    assert torch.allclose(slope(replace(PLAIN, span=5.0), SOME), slope(PLAIN, SOME / 5), atol=1e-9)


@pytest.mark.parametrize("weight", ["one", "sigma", "sigma_squared", "ghuber"])
def test_awms_gradient_is_the_finite_difference_of_the_advantage_weighted_log_probability(weight: Any) -> None:
    objective = replace(PLAIN, weight=weight, span=5.0)
    seen, live = matching(objective, SOME, 0.0)
    (found,) = torch.autograd.grad(objective(seen).total, live)
    assert seen.points.target is not None
    target, sigma = seen.points.target.double(), seen.points.sigma.double()

    def weighted(velocity: torch.Tensor) -> float:
        error = (velocity - target).square().mean(-1)
        level = {"one": torch.ones_like(sigma), "sigma": sigma, "sigma_squared": sigma.square(), "ghuber": sigma}[
            weight
        ]
        log_probability = -level * (4 * error**0.25 if weight == "ghuber" else error)
        return -float((log_probability * SOME[..., 0].double() / 5).mean())

    direction = torch.randn(live.shape, generator=torch.Generator().manual_seed(9)).double()
    base = live.detach().double()
    difference = (weighted(base + 1e-4 * direction) - weighted(base - 1e-4 * direction)) / 2e-4
    assert float((found.double() * direction).sum()) == pytest.approx(difference, rel=1e-4)


def branches(live: torch.Tensor, sigma: float, advantage: torch.Tensor) -> LossInputs:
    """One chunk and step of a group; the branches' own velocities are random."""
    seen = one_step(1.0, torch.zeros_like(live), live)
    target = torch.randn(live.shape, generator=torch.Generator().manual_seed(4))[:, None, None]
    points = EvaluationPoints(seen.points.x, torch.full_like(seen.points.sigma, sigma), target)
    at_old = {"old": seen.live.detach(), "ref": seen.live.detach()}
    return replace(seen, points=points, advantage=Advantage(advantage[:, None, None, None]), others=at_old)


def test_kvpos_energy_of_clean_samples_at_one_level_is_that_of_velocities_at_another_temperature() -> None:
    live, advantage = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, -1.0, 0.5, 0.0])
    data, velocity = KVPO(kl_weight=0.0), KVPO(kl_weight=0.0, energy="velocity", temperature=0.05 / (0.5 * 0.8**2))
    slopes = []
    for objective in (data, velocity):
        moving = live.clone().requires_grad_()
        slopes.append(torch.autograd.grad(objective(branches(moving, 0.8, advantage)).total, moving)[0])
    assert slopes[0].abs().sum() > 0
    assert torch.allclose(*slopes, rtol=1e-4, atol=1e-6)


def test_kvpos_first_gradient_is_that_of_the_expected_advantage_of_a_branch_where_all_were_equally_likely() -> None:
    advantage = torch.tensor([1.0, -0.5, 0.25, 0.0])
    target = torch.randn(4, 6, generator=torch.Generator().manual_seed(4))
    away = torch.randn(6, generator=torch.Generator().manual_seed(5))
    live = (target + away).requires_grad_()  # all branches have the same energy
    objective = KVPO(kl_weight=0.0, temperature=1.0)
    (found,) = torch.autograd.grad(objective(branches(live, 0.8, advantage)).total, live)

    def expected(velocity: torch.Tensor) -> float:
        energy = 0.5 * 0.8**2 * (velocity - target.double()).square().mean(1)
        return float((torch.softmax(-energy, 0) * advantage.double()).sum())

    base, difference = live.detach().double(), torch.zeros(4, 6, dtype=torch.float64)
    for index in range(24):
        step = torch.zeros(24, dtype=torch.float64)
        step[index] = 1e-4
        up, down = expected(base + step.view(4, 6)), expected(base - step.view(4, 6))
        difference.view(-1)[index] = (up - down) / 2e-4
    assert torch.allclose(-found.double(), difference, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("direction", ["to_reference", "from_reference"])
def test_kvpos_kl_has_the_direction_that_it_says(direction: Any) -> None:
    live = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    seen = branches(live, 1.0, torch.zeros(3))
    other = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    seen = replace(seen, others=seen.others | {"ref": other[:, None, None]})
    assert seen.points.target is not None
    target = seen.points.target[:, 0, 0]
    now, start = (torch.softmax(-0.5 * (v - target).square().mean(1), 0) for v in (live, other))
    first, second = (now, start) if direction == "to_reference" else (start, now)
    found = KVPO(kl=direction, temperature=1.0)(seen).metrics["kl"]
    assert found == pytest.approx(float((first * (first / second).log()).sum()), rel=1e-3)


def test_kvpo_over_whole_branches_adds_the_energies_of_chunks() -> None:
    samples = replace(trajectory(torch.Generator().manual_seed(0)), group=torch.zeros(8, dtype=torch.long))
    draw = torch.Generator().manual_seed(1)
    live, old = (torch.randn(samples.x.shape, generator=draw) for _ in range(2))
    objective = KVPO(scope="clip", temperature=1.0, kl_weight=0.0, clip_low=1.0, clip_high=1e9)
    seen = LossInputs(samples, Advantage(SOME), objective.points(samples, NoiseKey(0)), live, {"old": old, "ref": old})
    target = (samples.x_next - samples.x) / samples.coefficients.b

    def probability(velocity: torch.Tensor) -> torch.Tensor:
        energy = 0.5 * (samples.sigma.square() * (velocity - target).square().mean(-1)).sum((1, 2))
        return torch.softmax(-energy, 0)

    expected = -(probability(live) / probability(old) * SOME.flatten()).mean()
    assert float(objective(seen).total) == pytest.approx(float(expected), rel=1e-3)


def test_branches_are_compared_with_an_anchor_that_did_not_explore_and_is_not_trained_on() -> None:
    run, plain = trainer(small(find_recipe("kvpo"))), trainer(replace(small(find_recipe("kvpo")), exploration=None))
    batch = run.collect()
    is_anchor = batch.trajectory.sample >= 24  # three groups of eight, and their anchors
    rows = is_anchor.nonzero()[:, 0]
    assert torch.equal(batch.trajectory.group[rows], torch.arange(3))
    unexplored = plain.collect().trajectory.latents[::8]
    assert torch.allclose(batch.trajectory.latents[rows], unexplored, atol=1e-5)
    advantage, metrics = run.credit(batch)
    value, group = batch.scores["lift"].value, batch.trajectory.group
    for number in range(3):
        scores = value[group == number]
        expected = ((scores - value[rows[number]]) / scores.std()).clamp(-2.5, 2.5)
        assert torch.allclose(advantage.value[group == number, 0, 0, 0], expected, atol=1e-4)
    assert torch.equal(advantage.is_judged, ~is_anchor)
    explored = advantage.value[~is_anchor].flatten(1).mean(1)
    assert metrics["anchor/better"] == pytest.approx(float((explored > 0).float().mean()))


def test_every_group_has_a_fork_of_its_own_and_no_other_noise() -> None:
    run = trainer(replace(small(find_recipe("tempflow")), groups=6))
    made = run.collect().trajectory
    plan = run.recipe.plan(run.recipe.seed, 0, 6, 4)
    assert len(set(plan.forks)) > 2
    for group, fork in enumerate(plan.forks):
        rows = made.group == group
        assert made.step[rows].unique().tolist() == [fork.step]
        noisy = made.trainable[rows].nonzero()
        assert noisy[:, 1].unique().tolist() == [fork.chunk]
        latents = made.latents[rows]
        assert torch.allclose(latents[:, : fork.chunk], latents[:1, : fork.chunk].expand_as(latents[:, : fork.chunk]))
        assert not torch.allclose(latents[0, fork.chunk], latents[1, fork.chunk], atol=1e-3)


def test_one_fork_for_all_groups_is_a_plan_of_group_forks_that_agree() -> None:
    shared = Branching(per_group=False)(0, 3, 4, 5)
    each = replace(shared, group_forks=(shared.forks,) * 4)
    sample, group = torch.arange(16), torch.arange(4).repeat_interleave(4)
    assert torch.equal(shared.noise_sources(sample, group, 4), each.noise_sources(sample, group, 4))


def test_the_fork_step_is_credited_with_the_slope_of_the_expected_reward_times_its_noise() -> None:
    """x' = b·v + s·ε and r = w·x': dJ/dv = b·w for finite differences of any size; TempFlow's weight adds s."""
    gain, deviation, weights = 3.0, 0.2, torch.tensor([1.0, -2.0, 0.5])
    noise = torch.randn(40_000, 3, generator=torch.Generator().manual_seed(1))
    live = torch.zeros_like(noise, requires_grad=True)
    seen = one_step(gain, noise, live, deviation=deviation)
    reward = (deviation * noise) @ weights
    seen = replace(seen, advantage=Advantage((reward - reward.mean())[:, None, None, None]))
    objective = ClippedRatio(step_weight="noise", kl_weight=0.0)
    found = -torch.autograd.grad(objective(seen).total, live)[0].sum(0)
    assert torch.allclose(found, deviation * (gain * deviation) * weights, rtol=0.05, atol=5e-3)


class Growth(NamedTuple):
    """A condition of a policy with the velocity v = x, so that a sample is e⁻¹ times its noise."""

    rows: torch.Tensor

    @property
    def chunks(self) -> int:
        return 1


class GrowthSession:
    def __init__(self, condition: Growth) -> None:
        self.condition = condition

    def context(self) -> torch.Tensor:
        return self.condition.rows

    def append(self, latents: torch.Tensor) -> None: ...


class GrowthPolicy:
    latent_dim = 2

    def session(self, condition: Growth) -> GrowthSession:
        return GrowthSession(condition)

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("steps", [12, 24])
def test_steps_after_the_window_are_of_second_order(steps: int) -> None:
    errors = []
    for second_order in (False, True):
        plan = SlidingWindow(steps, width=1, second_order=second_order)(0, 0, 1, 1)
        policy: Any = GrowthPolicy()
        kernel = build_kernel("flow-sde", 0.0)
        group, sample = torch.zeros(4, dtype=torch.long), torch.arange(4)
        made = rollout(policy, Growth(torch.zeros(4, 1)), group, sample, plan, kernel, NoiseKey(0))
        exact = made.x[:, :, 0] * torch.tensor(-1.0).exp()
        errors.append(float((made.latents - exact).norm() / exact.norm()))
    euler, multistep = errors
    assert multistep < euler * 3 / steps


PUBLISHED = {
    "awm": ("objective.weight=ghuber", "objective.clip=1e-5", "objective.kl_weight=0.003", "learning_rate=3e-4",
            "plan.steps=14", "group_size=24"),
    "kvpo": ("objective.scope=clip", "objective.temperature=1", "objective.kl_weight=10", "ema=0.999",
             "learning_rate=1e-5", "plan.steps=4"),
    "tempflow": ("plan.steps=10", "plan.first_steps=9", "group_size=24", "credit.dense=0", "objective.reduce=mean",
                 "objective.clip_low=1e-4", "objective.clip_high=1e-4"),
    "mix-grpo": ("plan.steps=25", "plan.width=4", "group_size=12", "learning_rate=1e-5"),
    "exemplar-ratio": ("exemplars.baseline=all", "rewards.judge=0", "rewards.perceptual=0", "rewards.temporal=0",
                       "rewards.other.omni_reward=0.5", "rewards.other.ai_portrait=0.5"),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_settings(name: str) -> None:
    changed = override(find_recipe(name), PUBLISHED[name])
    assert changed != find_recipe(name)
    if name == "exemplar-ratio":
        assert replace(changed, name="portraitgen") == find_recipe("portraitgen")
