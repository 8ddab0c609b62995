"""Limits in which one method is another, as equalities: of parameters after a step, of gradients, of advantages."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Literal

import pytest
import torch

from flowportrait.flow.kernels import flow_sde_kernel, gaussian_kl, log_ratio, longcat_sde_kernel
from flowportrait.flow.noise import NoiseKey
from flowportrait.flow.schedules import noise_schedule
from flowportrait.rewards.interface import Score
from flowportrait.rewards.registry import RewardWeights
from flowportrait.rl.allocation import Allocation, allocate_advantage
from flowportrait.rl.config import Recipe
from flowportrait.rl.credit import Credit, CreditConfig, assign_credit, normalized_deviations
from flowportrait.rl.objectives.interface import Advantage, LossInputs
from flowportrait.rl.objectives.matching import NFT, CorrectiveReflow, mean_of_samples
from flowportrait.rl.objectives.ratio import KVPO, ClippedRatio, SequenceRatio
from flowportrait.rl.plan import AllSteps, Fork, SingleStep, SlidingWindow
from flowportrait.rl.recipes import CARDS, find_recipe
from tests.rl.test_objectives import trajectory
from tests.rl.test_posttrain import RECIPE, evidence, one_step, shake, trainer
from tests.rl.test_recipes import finished, small

WIDE = ClippedRatio(clip_low=1.0, clip_high=1e9)


def after_a_step(recipe: Recipe) -> torch.Tensor:
    run = trainer(recipe)
    run.step()
    return torch.cat([parameter.detach().flatten() for parameter in run.policy.parameters()])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (RECIPE, replace(RECIPE, allocation=Allocation(steps={"lift": 0.0}))),
        (replace(RECIPE, objective=WIDE), replace(RECIPE, objective=replace(WIDE, trust="divergence", divergence=1e9))),
        (RECIPE, replace(RECIPE, plan=AllSteps(steps=4, trained=3), train_on=8)),
        (
            replace(RECIPE, plan=SlidingWindow(4, width=1)),
            replace(RECIPE, plan=SingleStep(4, first_steps=1, shared=True)),
        ),
        (replace(RECIPE, groups=1), replace(RECIPE, groups=1, credit=CreditConfig(std="largest"))),
    ],
    ids=["step weights flat", "dppo wide", "dance whole", "first step", "largest of one"],
)
def test_a_method_at_its_limit_is_another(one: Recipe, other: Recipe) -> None:
    assert torch.equal(after_a_step(one), after_a_step(other))


def test_who_won_of_two_is_all_that_two_scores_say() -> None:
    value, group = torch.randn(8, generator=torch.Generator().manual_seed(0)), torch.arange(4).repeat_interleave(2)
    score = {"r": Score(value, torch.ones(8, dtype=torch.bool))}
    by_score, by_wins = (
        assign_credit(score, group, 2, {"r": 1.0}, CreditConfig(win_rate=names)).advantage for names in ((), ("all",))
    )
    assert torch.allclose(by_score, by_wins, atol=1e-6)


def slope(recipe: Recipe, regions: torch.Tensor | None) -> torch.Tensor:
    """The first gradient in the head's last layer, every region paid alike."""
    run = trainer(recipe)
    trajectory, value = run.collect().trajectory, torch.randn(24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        old = run.velocity(trajectory)
    seen = evidence(run, trajectory, value, old)
    seen = replace(seen, advantage=Advantage(seen.advantage.value, regions))
    return torch.autograd.grad(recipe.objective(seen).total, run.policy.head.write.weight)[0]


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_a_flat_map_of_regions_is_none(reduce: Literal["sum", "mean"]) -> None:
    recipe = replace(RECIPE, objective=ClippedRatio(reduce=reduce))
    masks = torch.stack(list(trainer().task.regions.values()))
    assert torch.allclose(slope(recipe, masks), slope(recipe, None), rtol=1e-4, atol=1e-8)


def test_one_region_over_everything_is_none_to_nft() -> None:
    run = trainer()
    trajectory = finished(run)
    with torch.no_grad():
        old = run.velocity(trajectory, NFT().points(trajectory, NoiseKey(0)))
    shake(run)
    losses = []
    for regions in (None, torch.ones(1, trajectory.latents.shape[-1])):
        seen = replace(
            evidence(run, trajectory, torch.randn(24, generator=torch.Generator().manual_seed(1)), old),
            points=NFT().points(trajectory, NoiseKey(0)),
        )
        live = run.velocity(trajectory, seen.points)
        paid = replace(seen.advantage, regions=regions)
        seen = replace(seen, live=live, others={"old": old, "ref": old}, advantage=paid)
        losses.append(float(NFT()(seen).total.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def first_slope(objective: ClippedRatio, gain: float, deviation: float) -> torch.Tensor:
    live = torch.zeros(64, 3, requires_grad=True)
    noise = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(objective(one_step(gain, noise, live, deviation=deviation)).total, live)[0]


def test_rectified_guard_begins_as_the_rectified_plain_ratio() -> None:
    plain, guard = (ClippedRatio(form=form, step_weight="rectified", kl_weight=0.0) for form in ("exact", "guard"))
    assert torch.allclose(first_slope(plain, 3.0, 0.2), first_slope(guard, 3.0, 0.2), atol=1e-7)


def test_tempflows_weight_is_the_steps_own_deviation() -> None:
    even, noise = (ClippedRatio(step_weight=weight, kl_weight=0.0) for weight in ("even", "noise"))
    assert torch.allclose(first_slope(noise, 3.0, 0.2), 0.2 * first_slope(even, 3.0, 0.2), atol=1e-7)


def test_gspo_begins_as_flow_grpo_and_then_clips_whole_clips() -> None:
    plain, whole = replace(RECIPE, objective=ClippedRatio(kl_weight=0.0)), replace(RECIPE, objective=SequenceRatio())
    assert torch.allclose(slope(whole, None), slope(plain, None), rtol=1e-4, atol=1e-8)
    run = trainer(whole)
    trajectory, value = run.collect().trajectory, torch.randn(24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        old = run.velocity(trajectory)
    shake(run, 0.02)
    seen = evidence(run, trajectory, value, old)
    logs = log_ratio(trajectory.noise_gain, trajectory.noise, seen.live - old).sum(-1)
    sequence = logs.mean((1, 2)).exp()
    objective = SequenceRatio(*((sequence.detach().quantile(share) - 1).abs().item() for share in (0.3, 0.7)))
    bounds = 1 - objective.clip_low, 1 + objective.clip_high
    direct = -torch.minimum(sequence * value, sequence.clamp(*bounds) * value).mean()
    head = run.policy.head.write.weight
    expected = torch.autograd.grad(direct, head, retain_graph=True)[0]
    found = objective(seen)
    assert float(found.total.detach()) == pytest.approx(float(direct.detach()), rel=1e-4)
    assert torch.allclose(torch.autograd.grad(found.total, head)[0], expected, rtol=1e-3, atol=1e-6)
    assert found.metrics["clip/share"] > 0


def test_longcats_kernel_without_its_cap_is_flow_sde() -> None:
    levels = torch.tensor([1.0, 0.8, 0.5]), torch.tensor([0.8, 0.5, 0.2])
    for one, other in zip(longcat_sde_kernel(0.7, float("inf"))(*levels), flow_sde_kernel(0.7)(*levels), strict=True):
        assert torch.equal(one, other)


def test_siblings_are_drawn_and_credited_as_if_the_real_clip_were_not_there() -> None:
    beside, alone = (trainer(small(find_recipe("exemplar-ratio"))) for _ in range(2))
    alone.recipe = replace(alone.recipe, exemplars=None)
    own = []
    for run in (alone, beside):
        batch = run.collect()
        drawn = ~batch.trajectory.real
        own.append((batch.trajectory.latents[drawn], run.credit(batch)[0].value[drawn]))
    assert all(torch.equal(a, b) for a, b in zip(*own, strict=True))


def test_kvpo_learns_nothing_where_no_branch_looks_at_another_past() -> None:
    run = trainer(replace(small(find_recipe("kvpo")), exploration=None))
    latents = run.collect().trajectory.latents.unflatten(0, (3, 8))
    assert torch.allclose(latents, latents[:, :1].expand_as(latents), atol=1e-5)
    assert run.step()["grad_norm"] < 1e-5


def test_kvpo_between_two_branches_is_a_logistic_choice() -> None:
    """L = −½ A₁ π₁/π₁ at the old weights, so dL/dE = (1 − π₁, −π₂) / 2τ, with E = mean v² and π₁ = σ((E₂ − E₁)/τ)."""
    objective, energy = KVPO(kl_weight=0.0, energy="velocity"), torch.tensor([0.03, 0.08])
    live = energy.sqrt()[:, None].repeat(1, 4).requires_grad_()
    seen = one_step(1.0, torch.zeros(2, 4), live)
    seen = replace(
        seen,
        points=seen.points._replace(target=torch.zeros(2, 1, 1, 4)),
        advantage=Advantage(torch.tensor([1.0, 0.0])[:, None, None, None]),
        others={"old": seen.live.detach(), "ref": seen.live.detach()},
    )
    (slope,) = torch.autograd.grad(objective(seen).total, live)
    better = torch.sigmoid((energy[1] - energy[0]) / objective.temperature)
    by_energy = torch.stack([1 - better, -(1 - better)]) / (2 * objective.temperature)
    assert torch.allclose(slope, by_energy[:, None] * live.detach() / 2, rtol=1e-4)


def test_solace_without_its_weight_is_the_usual_composite() -> None:
    assert RewardWeights(self_confidence=0.0).by_name() == RewardWeights().by_name()


def test_credit_is_the_clips_share_everywhere_and_the_chunks_share_where_it_was_earned() -> None:
    group, valid = torch.tensor([0, 0, 0, 0]), torch.ones(4, dtype=torch.bool)
    dense = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    score = Score(dense.mean(1), valid, dense)
    clip = normalized_deviations(score.value, valid, group).value
    for share in (0.0, 0.7, 1.0):
        found = assign_credit({"r": score}, group, 3, {"r": 2.0}, CreditConfig(dense=share, limit=99.0)).advantage
        for chunk in range(3):
            own = normalized_deviations(dense[:, 4 * chunk : 4 * chunk + 4].mean(1), valid, group).value
            assert torch.allclose(found[:, chunk], 2 * ((1 - share) * clip + share * own), atol=1e-5)


@pytest.mark.parametrize("steps", [6, 10])
def test_the_kl_pulls_one_over_dt_times_as_hard_as_the_authors(steps: int) -> None:
    """Flow-GRPO's code: ‖μ − μ_ref‖² / 2g², where the transition's variance is g²·|dt|; the card has the factors."""
    shift = 1.0 if steps == 6 else 3.0
    sigmas = noise_schedule(steps, shift).double()
    factors = []
    for sigma, following in itertools.pairwise(sigmas[:-1]):
        step, apart = flow_sde_kernel(0.7)(sigma, following), torch.tensor(0.3, dtype=torch.float64)
        g = step.s / (sigma - following).sqrt()
        authors = (step.b * apart).square() / (2 * g.square())
        factors.append(float(gaussian_kl(step.gain, apart)) / float(authors))
    assert factors == pytest.approx([float(1 / (a - b)) for a, b in itertools.pairwise(sigmas[:-1])], rel=1e-5)
    assert (round(min(factors)), round(max(factors))) == ((6, 6) if steps == 6 else (6, 28))
    reading = CARDS["flow-grpo"].reading
    assert "6 times at six even steps and 6 to 28 times on their ten steps" in reading
    assert "0.913 of it at six even steps" in reading


def test_longcats_weights_are_not_the_papers_where_its_cap_binds() -> None:
    sigmas = noise_schedule(6).double()
    ours, paper = [], []
    for sigma, following in itertools.pairwise(sigmas[:4]):
        step = longcat_sde_kernel()(sigma, following)
        assert float(step.s) == pytest.approx(0.45)
        ours.append(float(step.s / step.b.abs()))
        paper.append(float((sigma / ((sigma - following) * (1 - sigma))).sqrt()))
    assert ours == pytest.approx([2.7, 2.407, 2.071], abs=1e-3)
    assert paper == pytest.approx([float("inf"), 5.477, 3.464], abs=1e-3)
    free = longcat_sde_kernel(largest_std=float("inf"))(sigmas[2], sigmas[3])
    assert paper[2] / float(free.s / free.b.abs()) == pytest.approx(1.5)
    assert "2.7, 2.4 and 2.1" in CARDS["longcat-grpo"].reading


@pytest.mark.parametrize("over", ["leaves", "nodes"])
def test_a_depth_of_a_tree_is_divided_by_the_spread_of_its_leaves_or_of_its_nodes(
    over: Literal["leaves", "nodes"],
) -> None:
    """Four nodes of four leaves each: the std over leaves is √(4·3/15) of that over nodes, which the authors take."""
    nodes = torch.tensor([1.0, 2.0, 4.0, 9.0])
    leaves = nodes.repeat_interleave(4)
    ratio = float(nodes.std() / leaves.std())
    assert ratio == pytest.approx(1.25**0.5)
    assert f"{ratio - 1:.0%}".replace("%", " %") in CARDS["branch-grpo"].reading
    value = leaves + torch.tensor([1.0, -1.0, 0.5, -0.5]).repeat(4)  # what differs inside a node
    tree = replace(
        trajectory(torch.Generator().manual_seed(0)).select(torch.arange(2).repeat_interleave(8)),
        group=torch.zeros(16, dtype=torch.long),
        noise_source_id=torch.arange(4).repeat_interleave(4)[:, None, None].expand(-1, 3, 2),
    )
    credit = Credit(value[:, None].expand(-1, 3), {"r": value[:, None].expand(-1, 3)}, {})
    found = allocate_advantage(credit, tree, Allocation(node_std=over), {}, (Fork(0, 0),)).value
    std = nodes.std() if over == "nodes" else leaves.std()
    expected = ((leaves - 4.0) / std)[:, None, None].expand(-1, 3, 2)
    assert torch.allclose(found[..., 0], expected, atol=1e-5)


def test_longcats_level_weight_is_the_papers_with_a_limit_and_one_and_a_half_of_the_rectified_one_without_a_cap() -> (
    None
):
    sigmas = noise_schedule(6)
    levels = sigmas[:3], sigmas[1:4]
    free = longcat_sde_kernel(largest_std=float("inf"))(*levels)
    capped = longcat_sde_kernel()(*levels)
    objective = ClippedRatio(step_weight="level", weight_limit=5.0)
    weights = []
    for table in (free, capped):
        made = replace(
            one_step(1.0, torch.zeros(3, 2), torch.zeros(3, 2)).trajectory,
            sigma=levels[0][:, None, None], coefficients=type(table)(*(part[:, None, None, None] for part in table)),
        )  # fmt: skip
        weights.append(objective._step_weights(made).flatten())
    paper = (levels[0] / ((levels[0] - levels[1]) * (1 - levels[0]))).sqrt().clamp_max(5.0)
    assert torch.allclose(weights[0], paper, rtol=1e-4)
    assert torch.allclose(weights[1], paper, rtol=1e-4)
    assert float(weights[0][2] / (free.s / free.b.abs())[2]) == pytest.approx(1.5, rel=1e-4)


def corrected(
    objective: NFT, value: torch.Tensor, regions: torch.Tensor | None = None
) -> tuple[LossInputs, torch.Tensor]:
    """The loss inputs of a random rollout and the gradient of the loss in its velocities."""
    draw = torch.Generator().manual_seed(2)
    samples = trajectory(draw)
    points = objective.points(samples, NoiseKey(0))
    old = torch.randn(points.x.shape, generator=draw)
    live = (old + 0.1 * torch.randn(old.shape, generator=draw)).requires_grad_()
    seen = LossInputs(samples, Advantage(value, regions), points, live, {"old": old})
    return seen, torch.autograd.grad(objective(seen).total, live)[0]


VALUE = torch.tensor([0.5, -0.3, 0.2, -2.0, -0.1, -0.2, -0.5, -0.4])[:, None, None, None]
"""Advantages of two groups of four, the second of which has no good sample."""


def test_a_correction_of_no_weight_or_without_a_good_sample_is_nft() -> None:
    plain = corrected(NFT(kl_weight=0.0), VALUE)[1]
    assert torch.equal(corrected(CorrectiveReflow(kl_weight=0.0, correction=0.0), VALUE)[1], plain)
    found = corrected(CorrectiveReflow(kl_weight=0.0, correction=2.0), VALUE)[1]
    assert torch.equal(found[4:], plain[4:]), "nobody in the group shows the way"
    assert torch.equal(found[[0, 2]], plain[[0, 2]]), "good samples need no correction"
    assert not torch.allclose(found[[1, 3]], plain[[1, 3]])


@pytest.mark.parametrize("toward", ["shifted", "mean"])
def test_the_correction_leads_from_bad_samples_to_good_ones(toward: Literal["shifted", "mean"]) -> None:
    """Its gradient in v is −2σ·c·(1 − 2r)·(x̂₀(v) − y) / (w·count)."""
    objective = CorrectiveReflow(kl_weight=0.0, correction=2.0, toward=toward)
    seen, found = corrected(objective, VALUE)
    extra = found - corrected(NFT(kl_weight=0.0), VALUE)[1]
    latents = seen.trajectory.latents
    for row, bad in ((1, 0.3), (3, 1.0)):
        target = latents[[0, 2]].mean(0)
        if toward == "shifted":
            target = latents[row] + target - latents[[1, 3]].mean(0)
        sigma = seen.points.sigma[row][..., None]
        error = (seen.points.x[row] - sigma * seen.live[row]).detach() - target[:, None]
        expected = -2 * sigma * 2.0 * bad * error / error.abs().mean(-1, keepdim=True) / seen.live.numel()
        assert torch.allclose(extra[row], expected, rtol=1e-3, atol=1e-8)


def test_the_correction_of_a_region_takes_the_samples_that_are_good_there() -> None:
    regions = torch.zeros(2, 10)
    regions[0, :4], regions[1, 4:] = 1, 1
    value = torch.zeros(8, 1, 1, 2)
    value[:4, ..., 0] = torch.tensor([1.0, -1, -1, -1])[:, None, None]
    value[:4, ..., 1] = torch.tensor([-1.0, 1, -1, -1])[:, None, None]
    samples = trajectory(torch.Generator().manual_seed(2))
    target, exists = mean_of_samples(Advantage(value, regions), samples, 1)
    assert torch.allclose(target[3, :, :4], samples.latents[0, :, :4])
    assert torch.allclose(target[3, :, 4:], samples.latents[1, :, 4:])
    assert exists[:4].all()
    assert not exists[4:].any()
