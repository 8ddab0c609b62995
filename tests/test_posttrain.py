"""Claims about post-training, on a tiny policy and closed-form rewards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from flowportrait.generator.arflow import ARFlow
from flowportrait.posttrain.credit import CreditConfig, assign
from flowportrait.posttrain.items import Item
from flowportrait.posttrain.objective import ObjectiveConfig, clipped_ratio
from flowportrait.posttrain.recipes import Recipe, flow_grpo
from flowportrait.posttrain.replay import ReplayMismatch, fix_old, replay_velocity
from flowportrait.posttrain.trainer import Trainer
from flowportrait.reward.composite import Composite
from flowportrait.reward.interface import RewardBatch, Score, all_valid
from tests.test_generator import TINY

RECIPE: Recipe = replace(
    flow_grpo(), groups=3, group_size=8, frames=16, steps=4, learning_rate=3e-3, trained_steps=None, eta=0.7
)


@dataclass(frozen=True)
class Lift:
    """Pays for a large first coefficient: something a policy can learn in a few iterations."""

    name: str = "lift"
    needs: frozenset[str] = frozenset({"motion"})

    def __call__(self, batch: RewardBatch) -> Score:
        return all_valid(batch.motion[..., 0].mean(1))


def trainer(recipe: Recipe = RECIPE) -> Trainer:
    torch.manual_seed(0)
    policy = ARFlow(TINY)
    for parameter in policy.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    items = [Item(torch.randn(80, 80, generator=torch.Generator().manual_seed(i)), 0) for i in range(5)]
    return Trainer(policy, items, recipe, Composite((Lift(),), {"lift": 1.0}), None)


def test_the_ratio_is_exactly_one_before_the_first_update() -> None:
    run = trainer()
    trajectory, _, _ = run.collect()
    trajectory, gap = fix_old(run.roles.live, trajectory)
    velocity = replay_velocity(run.roles.live, trajectory)
    loss = clipped_ratio(trajectory, velocity, None, torch.randn(len(trajectory)), ObjectiveConfig())
    assert loss.metrics["ratio/mean"] == 1.0
    assert loss.metrics["ratio/std"] == 0.0
    assert gap < 1e-3


def test_the_replay_recovers_the_drawn_noise_and_a_scrambled_condition_does_not() -> None:
    run = trainer()
    trajectory, _, _ = run.collect()
    fix_old(run.roles.live, trajectory)
    scrambled = replace(trajectory, condition=trajectory.select(torch.arange(len(trajectory)).flip(0)).condition)
    with pytest.raises(ReplayMismatch):
        fix_old(run.roles.live, scrambled)
    late = replace(trajectory, latents=trajectory.latents.roll(1, dims=1))
    with pytest.raises(ReplayMismatch):
        fix_old(run.roles.live, late)


def test_noise_does_not_depend_on_the_batch_it_is_drawn_in() -> None:
    from flowportrait.posttrain.rollout import rollout

    run = trainer()
    whole, _, _ = run.collect()
    rows = torch.tensor([5, 17])
    part = rollout(
        run.roles.live, whole.select(rows).condition, whole.group[rows], whole.sample[rows],
        run.planner(0), run.kernel, (RECIPE.seed, 0),
    )  # fmt: skip
    assert torch.equal(part.noise, whole.noise[rows])
    assert torch.allclose(part.latents, whole.latents[rows], atol=1e-4)


def test_the_reward_rises() -> None:
    run = trainer()
    history = [run.step()["reward/lift"] for _ in range(25)]
    assert sum(history[-5:]) / 5 > sum(history[:5]) / 5 + 0.3


def test_stopping_and_resuming_gives_the_same_bits(tmp_path: Path) -> None:
    straight = trainer()
    for _ in range(4):
        straight.step()
    first = trainer()
    for _ in range(2):
        first.step()
    first.save(tmp_path / "state.pt")
    second = trainer()
    second.load(tmp_path / "state.pt")
    for _ in range(2):
        second.step()
    for role in ("live", "ref", "ema"):
        weights = (getattr(run.roles, role).parameters() for run in (straight, second))
        assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_kl_term_changes_the_gradient() -> None:
    run = trainer()
    trajectory, _, _ = run.collect()
    trajectory, _ = fix_old(run.roles.live, trajectory)
    for parameter in run.roles.live.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    reference = replay_velocity(run.roles.ref, trajectory).detach()

    def gradient(weight: float, space: str) -> torch.Tensor:
        config = ObjectiveConfig(kl_weight=weight, kl_space=space)  # type: ignore[arg-type]
        loss = clipped_ratio(
            trajectory, replay_velocity(run.roles.live, trajectory), reference, torch.zeros(len(trajectory)), config
        )
        (grad,) = torch.autograd.grad(loss.total, run.roles.live.head.write.weight)
        return grad

    assert torch.equal(gradient(0.0, "v"), torch.zeros_like(gradient(0.0, "v")))
    assert gradient(0.1, "v").norm() > 0
    assert gradient(0.1, "exact").norm() > 0


def scores(*values: float, valid: list[bool] | None = None) -> dict[str, Score]:
    value = torch.tensor(values)
    return {"r": Score(value, torch.tensor(valid) if valid else torch.ones(len(value), dtype=torch.bool))}


def test_a_group_without_spread_earns_nothing_and_others_are_unaffected() -> None:
    group = torch.tensor([7, 7, 7, 3, 3, 3])
    credit = assign(scores(2.0, 2.0, 2.0, 0.0, 1.0, 2.0), group, 1, {"r": 1.0}, CreditConfig())
    assert torch.equal(credit.advantage[:3], torch.zeros(3, 1))
    assert torch.allclose(credit.advantage[3:, 0], torch.tensor([-1.0, 0.0, 1.0]))
    assert credit.metrics["dead_groups"] == 0.5


def test_an_invalid_score_takes_part_in_nothing() -> None:
    group = torch.zeros(4, dtype=torch.long)
    credit = assign(
        scores(0.0, 1.0, 2.0, float("nan"), valid=[True, True, True, False]), group, 1, {"r": 1.0}, CreditConfig()
    )
    assert torch.allclose(credit.advantage[:, 0], torch.tensor([-1.0, 0.0, 1.0, 0.0]))


def test_advantages_do_not_depend_on_a_rewards_scale_or_offset() -> None:
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    value = torch.randn(6)
    plain = assign(scores(*value.tolist()), group, 1, {"r": 1.0}, CreditConfig())
    moved = assign(scores(*(100 * value + 5).tolist()), group, 1, {"r": 1.0}, CreditConfig())
    assert torch.allclose(plain.advantage, moved.advantage, atol=1e-4)


def test_the_largest_spread_damps_groups_that_hardly_vary() -> None:
    group = torch.tensor([0, 0, 1, 1])
    credit = assign(scores(0.0, 1.0, 0.0, 0.01), group, 1, {"r": 1.0}, CreditConfig(std="largest"))
    assert credit.advantage[3].abs() < 0.02 * credit.advantage[1].abs()


def test_a_group_of_one_has_no_advantage() -> None:
    credit = assign(scores(3.0), torch.tensor([0]), 1, {"r": 1.0}, CreditConfig())
    assert credit.advantage.item() == 0.0


def test_a_dense_reward_pays_the_chunk_that_earned_it() -> None:
    dense = torch.zeros(2, 12)
    dense[1, 4:8] = 1.0
    earned = {"r": Score(dense.mean(1), torch.ones(2, dtype=torch.bool), dense)}
    credit = assign(earned, torch.zeros(2, dtype=torch.long), 3, {"r": 1.0}, CreditConfig(dense=1.0))
    assert torch.equal(credit.advantage[:, [0, 2]], torch.zeros(2, 2))
    assert credit.advantage[1, 1] > 0 > credit.advantage[0, 1]
