"""Claims about post-training, on a tiny policy and closed-form rewards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowportrait.errors import BadInput
from flowportrait.flow.kernels import KERNELS, StepCoefficients, log_ratio
from flowportrait.models.arflow import ARFlow
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.allocation import Allocation, allocate_advantage
from flowportrait.rl.collection import ScoredRollouts
from flowportrait.rl.config import Recipe
from flowportrait.rl.credit import Credit, CreditConfig, assign_credit
from flowportrait.rl.objectives.interface import Advantage, LossInputs
from flowportrait.rl.objectives.ratio import ClippedRatio
from flowportrait.rl.plan import AllSteps, Branching, Fork, OdePlan, Planner, SingleStep, SlidingWindow
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.rollout import EvaluationPoints, ReplayMismatch, Trajectory, check_replayed_noise
from flowportrait.rl.task import SpeechItem, TalkingTask
from flowportrait.rl.trainer import Trainer
from flowportrait.training.learner import SlowCopy, WeightRoles
from flowportrait.training.lora import LoraSettings, merge_adapters
from flowportrait.training.state import read_state, write_checkpoint, write_state
from tests.models.test_generator import TINY

RECIPE: Recipe = replace(
    find_recipe("flow-grpo"), groups=3, group_size=8, frames=16, plan=AllSteps(steps=4), learning_rate=3e-3, eta=0.7
)


@dataclass(frozen=True)
class Lift:
    """Pays for a large first coefficient: something a policy can learn in a few iterations."""

    name: str = "lift"
    needs: frozenset[str] = frozenset({"motion"})

    def __call__(self, batch: RewardBatch) -> Score:
        return all_valid(batch.motion[..., 0].mean(1))


def tiny_policy(size: float = 0.05) -> ARFlow:
    torch.manual_seed(0)
    policy = ARFlow(TINY)
    for parameter in policy.parameters():
        parameter.data += size * torch.randn_like(parameter)
    return policy


def trainer(recipe: Recipe = RECIPE, size: float = 0.05) -> Trainer:
    draws = [torch.Generator().manual_seed(i) for i in range(5)]
    rising = 0.15 * torch.arange(20.0)[:, None]
    spoken = [rising + 0.05 * torch.randn(20, 30, generator=draw) if recipe.exemplars else None for draw in draws]
    items = [SpeechItem(torch.randn(80, 80, generator=draw), 0, real) for draw, real in zip(draws, spoken, strict=True)]
    task = TalkingTask(items, recipe.frames, None, TINY.chunk)
    return Trainer(tiny_policy(size), task, recipe, CompositeReward((Lift(),), {"lift": 1.0}))


def shake(run: Trainer, size: float = 0.05) -> None:
    """Move the live weights away from those that acted."""
    for parameter in run.roles.policy.parameters():
        parameter.data += size * torch.randn_like(parameter)


def one(value: torch.Tensor) -> Advantage:
    """Advantages per sample ``[B]``."""
    return Advantage(value[:, None, None, None])


def evidence(run: Trainer, trajectory: Trajectory, advantage: torch.Tensor, old: torch.Tensor) -> LossInputs:
    live, points = run.velocity(trajectory), EvaluationPoints(trajectory.x, trajectory.sigma)
    with run.roles.use("ref"), torch.no_grad():
        reference = run.velocity(trajectory)
    return LossInputs(trajectory, one(advantage), points, live, {"old": old, "ref": reference})


def weights(run: Trainer, role: str) -> list[torch.Tensor]:
    return list(run.roles.state_dict()[role].values())


@pytest.mark.parametrize("autocast", ["no", "bf16"])
def test_the_ratio_is_exactly_one_before_the_first_update(autocast: str) -> None:
    run = trainer(replace(RECIPE, autocast=autocast))  # type: ignore[arg-type]
    trajectory = run.collect().trajectory
    with torch.no_grad():
        old = run.velocity(trajectory)
    assert old.dtype == torch.float32
    check_replayed_noise(trajectory, old, half=autocast == "bf16")
    loss = ClippedRatio()(evidence(run, trajectory, torch.randn(len(trajectory)), old))
    assert loss.metrics["ratio/mean"] == 1.0
    assert loss.metrics["ratio/std"] == 0.0
    assert all(loss.metrics[f"ratio_mean/step{step}"] == 1.0 for step in range(3))


@pytest.mark.parametrize("autocast", ["no", "bf16"])
def test_the_replay_recovers_the_noise_of_every_chunk_and_step_and_nothing_else_does(autocast: str) -> None:
    run = trainer(replace(RECIPE, autocast=autocast), size=0.3)  # type: ignore[arg-type]
    half = autocast == "bf16"
    trajectory = run.collect().trajectory
    with torch.no_grad():
        honest = run.velocity(trajectory)
        implied = trajectory.coefficients.noise(trajectory.x, trajectory.x_next, honest)
        assert torch.allclose(implied, trajectory.noise, atol=0.5 if half else 1e-3)
        check_replayed_noise(trajectory, honest, half)
        scrambled = replace(trajectory, condition=trajectory.condition.select(torch.arange(len(trajectory)).flip(0)))
        late = replace(trajectory, latents=trajectory.latents.roll(1, dims=1))
        for wrong in (scrambled, late):
            with pytest.raises(ReplayMismatch):
                check_replayed_noise(wrong, run.velocity(wrong), half)
        hook = run.policy.head.register_forward_hook(lambda _, __, v: torch.nn.functional.dropout(v, 0.1))
        with pytest.raises(ReplayMismatch):
            check_replayed_noise(trajectory, run.velocity(trajectory), half)
        hook.remove()


def test_noise_does_not_depend_on_the_batch_it_is_drawn_in() -> None:
    from flowportrait.rl.rollout import rollout

    run = trainer()
    whole = run.collect().trajectory
    rows = torch.tensor([5, 17])
    part = rollout(
        run.policy, whole.condition.select(rows), whole.group[rows], whole.sample[rows],
        RECIPE.plan(RECIPE.seed, 0, RECIPE.groups, 4), run.kernel, run.noise_key,
    )  # fmt: skip
    assert torch.equal(part.noise, whole.noise[rows])
    assert torch.allclose(part.latents, whole.latents[rows], atol=1e-4)


def test_the_reward_rises() -> None:
    run = trainer()
    history = [run.step()["reward/lift"] for _ in range(25)]
    assert sum(history[-5:]) / 5 > sum(history[:5]) / 5 + 0.3


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, old=SlowCopy(), lora=LoraSettings(rank=2))])
def test_stopping_and_resuming_gives_the_same_bits(recipe: Recipe, tmp_path: Path) -> None:
    straight = trainer(recipe)
    for _ in range(4):
        straight.step()
    first = trainer(recipe)
    for _ in range(2):
        first.step()
    write_state(first, tmp_path / "state.pt")
    second = trainer(recipe)
    read_state(second, tmp_path / "state.pt")
    for _ in range(2):
        second.step()
    for role in straight.roles.state_dict():
        assert all(torch.equal(a, b) for a, b in zip(weights(straight, role), weights(second, role), strict=True))


def gradient(run: Trainer) -> torch.Tensor:
    """What one update's backward passes add up to."""
    batch = run.collect()
    advantage, _ = run.credit(batch)
    run.optimizer.step = lambda: None
    run.update(batch.trajectory, advantage)
    return torch.cat([p.grad.flatten() for p in run.roles.policy.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    "change",
    [{"micro_batch": 5}, {"rollout_chunks": 3}, {"checkpointing": True}, {"offload": True}],
    ids=lambda change: next(iter(change)),
)
def test_how_the_work_is_cut_does_not_change_the_gradient(change: dict[str, int]) -> None:
    base = replace(RECIPE, updates=1, grad_clip=1e9)
    whole, cut = gradient(trainer(base)), gradient(trainer(replace(base, **change)))
    assert (whole - cut).norm() < 1e-5 * whole.norm()


@pytest.mark.parametrize("name", ["flow-dpo", "threshold"])
def test_neither_does_it_where_a_group_is_tied(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = replace(find_recipe(name), groups=3, group_size=4, frames=16, updates=1, grad_clip=1e9)
    credit = Trainer.credit

    def tied(run: Trainer, batch: ScoredRollouts) -> tuple[Advantage, dict[str, float]]:
        advantage, metrics = credit(run, batch)
        return replace(advantage, value=advantage.value * (batch.trajectory.group > 0)[:, None, None, None]), metrics

    monkeypatch.setattr(Trainer, "credit", tied)
    whole, cut = gradient(trainer(base)), gradient(trainer(replace(base, micro_batch=4)))
    assert (whole - cut).norm() < 1e-5 * whole.norm()


def test_the_order_of_samples_does_not_change_the_loss() -> None:
    run = trainer()
    trajectory = run.collect().trajectory
    with torch.no_grad():
        old = run.velocity(trajectory)
    shake(run)
    advantage, order = torch.randn(len(trajectory)), torch.randperm(len(trajectory))
    straight = ClippedRatio()(evidence(run, trajectory, advantage, old)).total
    mixed = ClippedRatio()(evidence(run, trajectory.select(order), advantage[order], old[order])).total
    assert torch.allclose(straight, mixed, rtol=1e-4)


def test_the_kl_term_changes_the_gradient_in_every_space() -> None:
    run = trainer()
    trajectory = run.collect().trajectory
    with torch.no_grad():
        old = run.velocity(trajectory)
    shake(run)

    def slope(weight: float, space: str) -> torch.Tensor:
        objective = ClippedRatio(kl_weight=weight, kl_space=space)  # type: ignore[arg-type]
        loss = objective(evidence(run, trajectory, torch.zeros(len(trajectory)), old))
        return torch.autograd.grad(loss.total, run.policy.head.write.weight)[0]

    assert torch.equal(slope(0.0, "v"), torch.zeros_like(slope(0.0, "v")))
    assert all(slope(0.1, space).norm() > 0 for space in ("v", "x", "exact"))


def test_lora_starts_as_nothing_learns_and_merges(tmp_path: Path) -> None:
    plain, run = trainer(), trainer(replace(RECIPE, lora=LoraSettings(rank=2), learning_rate=1e-2))
    assert torch.allclose(plain.collect().trajectory.latents, run.collect().trajectory.latents, atol=1e-5)
    frozen = run.policy.head.write.weight.clone()
    history = [run.step()["reward/lift"] for _ in range(20)]
    assert sum(history[-5:]) > sum(history[:5])
    assert torch.equal(frozen, run.policy.head.write.weight)
    assert all("lora_" in name for name in run.roles.trained())
    whole = merge_adapters(run.policy)
    latents = run.collect().trajectory.latents
    run.policy = run.replay.policy = whole
    assert torch.allclose(run.collect().trajectory.latents, latents, atol=1e-4)
    write_checkpoint(trainer(replace(RECIPE, lora=LoraSettings(rank=2))), tmp_path)
    assert set(ARFlow.from_pretrained(tmp_path).state_dict()) == set(tiny_policy().state_dict())


def test_roles_come_back_as_they_were_even_when_something_breaks() -> None:
    run = trainer()
    run.step()
    live = weights(run, "live")

    def breaks() -> None:
        with run.roles.use("ref"):
            assert not all(torch.equal(a, b) for a, b in zip(live, weights(run, "live"), strict=True))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks()
    assert all(torch.equal(a, b) for a, b in zip(live, weights(run, "live"), strict=True))


def test_the_slow_copy_acts_and_follows() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    roles = WeightRoles(layer, 0.9, SlowCopy(rate=0.1, max_decay=0.5))
    layer.weight.data.fill_(1.0)
    roles.after_iteration(3)
    assert roles.rollout_role == "old"
    with roles.use("old"):
        assert layer.weight.item() == pytest.approx(1 - 0.3)
    assert layer.weight.item() == 1.0


def test_a_batch_that_gives_no_number_changes_nothing_and_is_counted() -> None:
    run = trainer()
    before = weights(run, "live")
    batch = run.collect()
    metrics = run.update(batch.trajectory, one(torch.full((len(batch.trajectory),), float("nan"))))
    assert metrics["skipped"] == 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(run, "live"), strict=True))


def test_a_stale_rollout_is_weighted_by_how_likely_the_old_weights_made_it() -> None:
    run = trainer(replace(RECIPE, staleness=1))
    assert "ratio/mean" not in run.step()
    metrics = run.step()
    assert metrics["ratio/mean"] == pytest.approx(1.0, abs=0.3)
    assert 0 < metrics["importance_weight"] <= ClippedRatio().truncation
    history = [metrics["reward/lift"]] + [run.step()["reward/lift"] for _ in range(25)]
    assert sum(history[-5:]) > sum(history[:5])


def one_step(
    gain: float, noise: torch.Tensor, live: torch.Tensor, behaviour: torch.Tensor | None = None, deviation: float = 0.5
) -> LossInputs:
    """A transition of one chunk at one step with v_old = 0, so that everything has a closed form."""
    batch, size = noise.shape
    s = torch.full((batch, 1, 1, 1), deviation)
    shape = (batch, 1, 1, size)
    trajectory = Trajectory(
        group=torch.zeros(batch, dtype=torch.long), sample=torch.arange(batch), condition=None,
        latents=torch.zeros(batch, 1, size), step=torch.zeros(batch, 1, dtype=torch.long),
        sigma=torch.full((batch, 1, 1), 0.5), coefficients=StepCoefficients(torch.ones_like(s), gain * s, s),
        trainable=torch.ones(batch, 1, 1, dtype=torch.bool), noise_source_id=torch.zeros(batch, 1, 1, dtype=torch.long),
        x=torch.zeros(shape), x_next=torch.zeros(shape), noise=noise.reshape(shape),
        real=torch.zeros(batch, dtype=torch.bool),
        v_behaviour=None if behaviour is None else behaviour.reshape(shape),
    )  # fmt: skip
    points = EvaluationPoints(trajectory.x, trajectory.sigma)
    return LossInputs(trajectory, one(torch.ones(batch)), points, live.reshape(shape), {"old": torch.zeros(shape)})


def test_guards_ratio_is_centred_and_the_plain_one_is_not() -> None:
    noise = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    live = torch.full_like(noise, 0.4)
    free = {"kl_weight": 0.0, "clip_low": 1.0, "clip_high": 1e9}
    plain = ClippedRatio(**free)(one_step(2.0, noise, live))  # type: ignore[arg-type]
    assert plain.metrics["ratio/mean"] == pytest.approx(1.0, abs=0.02)
    logs = log_ratio(torch.tensor(2.0), noise, live)
    assert float(logs.mean()) == pytest.approx(-0.5 * 0.8**2, abs=0.01)
    guard = ClippedRatio(form="guard", **free)(one_step(2.0, noise, live))  # type: ignore[arg-type]
    centred = torch.exp(0.5 * (logs + 0.5 * 0.8**2))
    assert guard.metrics["ratio/mean"] == pytest.approx(float(centred.mean()), rel=1e-4)
    assert float(centred.log().mean()) == pytest.approx(0.0, abs=2e-3)


def test_the_divergence_mask_leaves_out_what_moved_far_in_the_asked_direction_only() -> None:
    noise, objective = torch.tensor([[3.0], [-3.0]]), ClippedRatio(trust="divergence", divergence=0.1, kl_weight=0.0)
    live = torch.full((2, 1), 0.5, requires_grad=True)
    loss = objective(one_step(1.0, noise, live))
    (slope,) = torch.autograd.grad(loss.total, live)
    assert slope[0] == 0.0
    assert slope[1] != 0.0


@pytest.mark.parametrize("form", ["exact", "guard"])
def test_rectified_steps_have_the_same_gradient_whatever_their_gain_and_noise(form: Literal["exact", "guard"]) -> None:
    slopes = []
    for gain, deviation in ((0.5, 0.4), (4.0, 0.1)):
        live = torch.zeros(64, 3, requires_grad=True)
        noise = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
        objective = ClippedRatio(form=form, step_weight="rectified", kl_weight=0.0)
        loss = objective(one_step(gain, noise, live, deviation=deviation))
        slopes.append(torch.autograd.grad(loss.total, live)[0])
    assert torch.allclose(slopes[0], slopes[1], atol=1e-7)


@settings(deadline=None, max_examples=25)
@given(st.floats(-0.5, 0.5), st.floats(0.1, 2.0))
def test_a_stale_rollouts_weight_is_the_likelihood_of_old_over_behaviour_truncated(moved: float, gain: float) -> None:
    noise = torch.linspace(-2, 2, 9)[:, None]
    behaviour = torch.full((9, 1), -moved)
    objective = ClippedRatio(kl_weight=0.0, truncation=1.5)
    loss = objective(one_step(gain, noise, torch.zeros(9, 1), behaviour))
    expected = log_ratio(torch.tensor(gain), noise, torch.full((9, 1), moved)).exp().clamp_max(1.5)
    assert float(loss.total) == pytest.approx(-float(expected.mean()), rel=1e-4)


def test_regions_divide_a_ratio_without_losing_any_of_it() -> None:
    noise, live = torch.randn(5, 6), 0.01 * torch.randn(5, 6)
    base = one_step(1.0, noise, live)
    logs = log_ratio(base.trajectory.noise_gain, base.trajectory.noise, base.live)
    masks = torch.tensor([[1.0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]])
    parts = Advantage(torch.ones(5, 1, 1, 2), masks).reduce(logs, "sum")
    assert torch.allclose(parts.sum(-1), logs.sum(-1), atol=1e-6)
    live = live.requires_grad_()
    paid = Advantage(torch.tensor([1.0, 0.0]).expand(5, 1, 1, 2), masks)
    loss = ClippedRatio(kl_weight=0.0)(replace(one_step(1.0, noise, live), advantage=paid))
    (slope,) = torch.autograd.grad(loss.total, live)
    assert slope[:, :4].abs().min() > 0
    assert torch.equal(slope[:, 4:], torch.zeros(5, 2))


PLANNERS: list[Planner] = [
    AllSteps(), AllSteps(trained=3), SlidingWindow(), SlidingWindow(order="random"), SingleStep(),
    SingleStep(shared=True), OdePlan(), Branching(), Branching(forks=2, elsewhere="sde"),
]  # fmt: skip


@pytest.mark.parametrize("planner", PLANNERS, ids=repr)
@given(iteration=st.integers(0, 500), groups=st.integers(1, 5), chunks=st.integers(1, 6))
@settings(deadline=None, max_examples=20)
def test_a_plan_depends_on_its_arguments_alone_and_never_ends_in_noise(
    planner: Planner, iteration: int, groups: int, chunks: int
) -> None:
    plan, again = planner(3, iteration, groups, chunks), planner(3, iteration, groups, chunks)
    assert torch.equal(plan.stochastic, again.stochastic)
    assert torch.equal(plan.record, again.record)
    assert plan.stochastic.shape == (groups, chunks, planner.steps)
    assert not plan.stochastic[..., -1].any()
    assert (plan.record.diff(dim=1) > 0).all()
    recorded = plan.stochastic.gather(2, plan.record[:, None].expand(-1, chunks, -1))
    assert recorded.flatten(1).any(1).all() or plan.record.shape[1] == 0


def test_a_sliding_window_covers_every_stochastic_step_from_high_to_low_noise() -> None:
    planner = SlidingWindow(steps=6, width=2, dwell=5)
    first = [int(planner(0, iteration, 1, 1).record[0, 0]) for iteration in range(25)]
    assert first == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5 + [0] * 5


def test_one_step_differs_between_groups_and_not_between_siblings() -> None:
    plan = SingleStep(steps=8, first_steps=7)(0, 0, 50, 2)
    assert len(plan.record.unique()) == 7
    assert (plan.stochastic.sum(-1) == 1).all()
    shared = SingleStep(steps=8, first_steps=7, shared=True)(0, 0, 50, 2)
    assert len(shared.record.unique()) == 1


@pytest.mark.parametrize("planner", [p for p in PLANNERS if not isinstance(p, OdePlan)], ids=repr)
def test_every_plan_rolls_out_replays_and_learns(planner: Planner) -> None:
    run = trainer(replace(RECIPE, plan=planner, group_size=4, learning_rate=1e-4))
    metrics = run.step()
    assert metrics["noise_gap"] < 1e-3
    assert metrics["ratio/mean"] == pytest.approx(1.0, abs=0.5)
    assert metrics["grad_norm"] > 0


def test_siblings_share_their_past_up_to_a_fork_and_not_beyond() -> None:
    run = trainer(replace(RECIPE, plan=Branching(steps=4, forks=2, elsewhere="sde", first_steps=3), group_size=4))
    trajectory = run.collect().trajectory
    first, second = run.recipe.plan(0, 0, 3, 4).forks
    own = trajectory.select(torch.arange(4))
    shared = own.latents[:, : first.chunk]
    assert torch.equal(shared, shared[:1].expand_as(shared))
    assert torch.allclose(own.latents[0, : second.chunk], own.latents[1, : second.chunk], atol=1e-5)
    assert not torch.allclose(own.latents[0, -1], own.latents[1, -1], atol=1e-2)
    assert not torch.allclose(own.latents[0, -1], own.latents[2, -1], atol=1e-2)


def test_a_tree_that_forks_at_the_root_is_a_group_of_chains() -> None:
    chains = trainer(replace(RECIPE, same_start=True))
    trajectory = chains.collect().trajectory
    part = torch.randn(len(trajectory), 4)
    credit = Credit(part, {"r": part}, {})
    tree = allocate_advantage(credit, trajectory, Allocation(), {}, forks=(Fork(0, 0),)).value
    for family in range(3):
        rows = trajectory.group == family
        own = part[rows] - part[rows].mean(0)
        assert torch.allclose(tree[rows, :, 0, 0], own / own.std(0), atol=1e-5)


def test_what_siblings_share_earns_nothing_and_a_fork_earns_its_leaves_mean() -> None:
    owner = torch.tensor([[0, 1, 3], [0, 1, 4], [0, 2, 5], [0, 2, 6]])[:, None]
    part = torch.tensor([1.0, 3.0, 5.0, 7.0])[:, None]
    run = trainer(replace(RECIPE, plan=AllSteps(steps=4), group_size=4, groups=1, frames=4))
    trajectory = replace(run.collect().trajectory, noise_source_id=owner)
    value = allocate_advantage(Credit(part, {"r": part}, {}), trajectory, Allocation(), {}, forks=(Fork(0, 0),)).value[
        :, 0, :, 0
    ]
    assert torch.equal(value[:, 0], torch.zeros(4))
    nodes = torch.tensor([2.0, 2.0, 6.0, 6.0]) - 4
    assert torch.allclose(value[:, 1], nodes / nodes.std())


def test_an_allocation_pays_a_reward_where_and_when_it_says() -> None:
    run = trainer()
    trajectory = run.collect().trajectory
    early, mouth = torch.randn(24, 4), torch.randn(24, 4)
    credit = Credit(early + mouth, {"early": early, "mouth": mouth}, {})
    allocation = Allocation(steps={"early": 1.0}, regions={"mouth": "mouth"})
    advantage = allocate_advantage(credit, trajectory, allocation, run.task.regions, limit=1e9)
    region = list(run.task.regions).index("mouth")
    weight = 2 * trajectory.sigma[0, 0]
    expected = early[..., None] * weight
    assert torch.allclose(advantage.value[..., 1 - region], expected, atol=1e-5)
    assert torch.allclose(advantage.value[..., region], expected + mouth[..., None], atol=1e-5)
    assert torch.equal(advantage.regions.sum(0), torch.ones(TINY.latent_dim))  # type: ignore[union-attr]
    with_more = replace(allocation, steps={"early": 1.0, "sync": -1.0})
    assert torch.equal(
        allocate_advantage(credit, trajectory, with_more, run.task.regions, limit=1e9).value, advantage.value
    )
    with pytest.raises(BadInput, match="allocation names the reward 'mouht'; this run has early, mouth"):
        allocate_advantage(credit, trajectory, Allocation(regions={"mouht": "mouth"}), run.task.regions)
    with pytest.raises(BadInput, match="allocation cannot divide"):
        replace(RECIPE, credit=CreditConfig(aggregation="sum_then_normalize"), allocation=allocation)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_every_kernels_ratio_is_the_quotient_of_its_two_densities(name: str) -> None:
    step = KERNELS[name](0.5)(torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64))
    x, eps, old, new = torch.randn(4, 1000, dtype=torch.float64)
    x_next = step.mean(x, old) + step.s * eps
    normal = torch.distributions.Normal
    closed = normal(step.mean(x, new), step.s).log_prob(x_next) - normal(step.mean(x, old), step.s).log_prob(x_next)
    assert torch.allclose(log_ratio(step.gain, eps, new - old).double(), closed, atol=1e-4)
    assert torch.allclose(step.noise(x, x_next, old), eps)


def scores(*values: float, valid: list[bool] | None = None) -> dict[str, Score]:
    value = torch.tensor(values)
    return {"r": Score(value, torch.tensor(valid) if valid else torch.ones(len(value), dtype=torch.bool))}


def test_a_group_without_spread_earns_nothing_and_others_are_unaffected() -> None:
    group = torch.tensor([7, 7, 7, 3, 3, 3])
    credit = assign_credit(scores(2.0, 2.0, 2.0, 0.0, 1.0, 2.0), group, 1, {"r": 1.0}, CreditConfig())
    assert torch.equal(credit.advantage[:3], torch.zeros(3, 1))
    assert torch.allclose(credit.advantage[3:, 0], torch.tensor([-1.0, 0.0, 1.0]))
    assert credit.metrics["dead_groups"] == 0.5


def test_an_invalid_score_takes_part_in_nothing() -> None:
    group = torch.zeros(4, dtype=torch.long)
    credit = assign_credit(
        scores(0.0, 1.0, 2.0, float("nan"), valid=[True, True, True, False]), group, 1, {"r": 1.0}, CreditConfig()
    )
    assert torch.allclose(credit.advantage[:, 0], torch.tensor([-1.0, 0.0, 1.0, 0.0]))


def test_advantages_do_not_depend_on_a_rewards_scale_or_offset() -> None:
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    value = torch.randn(6)
    plain = assign_credit(scores(*value.tolist()), group, 1, {"r": 1.0}, CreditConfig())
    moved = assign_credit(scores(*(100 * value + 5).tolist()), group, 1, {"r": 1.0}, CreditConfig())
    assert torch.allclose(plain.advantage, moved.advantage, atol=1e-4)


def test_the_largest_spread_damps_groups_that_hardly_vary() -> None:
    group = torch.tensor([0, 0, 1, 1])
    credit = assign_credit(scores(0.0, 1.0, 0.0, 0.01), group, 1, {"r": 1.0}, CreditConfig(std="largest"))
    assert credit.advantage[3].abs() < 0.02 * credit.advantage[1].abs()


def test_a_group_of_one_has_no_advantage() -> None:
    credit = assign_credit(scores(3.0), torch.tensor([0]), 1, {"r": 1.0}, CreditConfig())
    assert credit.advantage.item() == 0.0


def test_a_dense_reward_pays_the_chunk_that_earned_it() -> None:
    dense = torch.zeros(2, 12)
    dense[1, 4:8] = 1.0
    earned = {"r": Score(dense.mean(1), torch.ones(2, dtype=torch.bool), dense)}
    credit = assign_credit(earned, torch.zeros(2, dtype=torch.long), 3, {"r": 1.0}, CreditConfig(dense=1.0))
    assert torch.equal(credit.advantage[:, [0, 2]], torch.zeros(2, 2))
    assert credit.advantage[1, 1] > 0 > credit.advantage[0, 1]
