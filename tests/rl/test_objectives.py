"""What holds of every objective: samples that were not judged weigh nothing, and regions paid alike are none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from flowportrait.flow.kernels import StepCoefficients
from flowportrait.flow.noise import NoiseKey
from flowportrait.rl.objectives.distribution import DistributionMatching
from flowportrait.rl.objectives.interface import Advantage, LossInputs
from flowportrait.rl.objectives.matching import NFT, RWR, CorrectiveReflow, Distil
from flowportrait.rl.objectives.preference import DPO, Threshold
from flowportrait.rl.objectives.ratio import AWM, KVPO, ClippedRatio, SequenceRatio
from flowportrait.rl.rollout import Trajectory

GROUPS, SIZE, CHUNKS, STEPS, NUMBERS = 2, 4, 3, 2, 10
BATCH = GROUPS * SIZE
REGIONS = torch.zeros(3, NUMBERS)
REGIONS[0, :5], REGIONS[1, 5:8], REGIONS[2, 8:] = 1, 1, 1
LOST = torch.tensor([1, 6])
"""Samples that could not be judged, one in each group."""

EXACT: dict[str, Any] = {
    "nft": NFT(kl_weight=0.1), "rwr": RWR(), "distil": Distil(), "dpo": DPO(beta=2.0, anchor=0.1),
    "dpo derived": DPO(beta=2.0, level="derived"), "threshold": Threshold(beta=2.0), "kvpo": KVPO(),
    "gspo": SequenceRatio(), "dmd": DistributionMatching(0.5), "corrective": CorrectiveReflow(kl_weight=0.1),
}  # fmt: skip
"""Objectives in which regions paid alike are none wherever the weights are."""

FIRST: dict[str, Any] = {
    "ratio": ClippedRatio(), "ratio of means": ClippedRatio(reduce="mean", clip_low=1e-3, kl_space="v"),
    "guard": ClippedRatio(form="guard", step_weight="rectified"),
    "dppo": ClippedRatio(trust="divergence", step_weight="noise", kl_space="x"), "awm": AWM(),
}  # fmt: skip
"""Objectives in which every region has a ratio and a clip of its own: there they are none at the weights that acted."""


def trajectory(draw: torch.Generator) -> Trajectory:
    path = (BATCH, CHUNKS, STEPS, NUMBERS)
    x, x_next, noise = (torch.randn(path, generator=draw) for _ in range(3))
    table = (BATCH, CHUNKS, STEPS, 1)
    scores = torch.randn(path, generator=torch.Generator().manual_seed(9))
    return Trajectory(
        group=torch.arange(GROUPS).repeat_interleave(SIZE), sample=torch.arange(BATCH), condition=None,
        latents=torch.randn(BATCH, CHUNKS, NUMBERS, generator=draw), step=torch.arange(STEPS).expand(BATCH, -1),
        sigma=torch.tensor([0.8, 0.4]).expand(BATCH, 1, -1),
        coefficients=StepCoefficients(torch.ones(table), torch.full(table, -0.3), torch.full(table, 0.4)),
        trainable=torch.ones(table[:3], dtype=torch.bool), noise_source_id=torch.zeros(table[:3], dtype=torch.long),
        x=x, x_next=x_next, noise=noise, real=torch.zeros(BATCH, dtype=torch.bool), score_gradient=scores,
    )  # fmt: skip


def evidence(objective: Any, advantage: Advantage, moved: float = 0.1, changed: bool = False) -> LossInputs:
    """Random velocities; with ``changed`` everything about the samples in ``LOST`` is other than it was."""
    draw = torch.Generator().manual_seed(0)
    rollout = trajectory(draw)
    if changed:
        other = trajectory(torch.Generator().manual_seed(1))
        for name in ("latents", "x", "x_next", "noise"):
            value = getattr(rollout, name).clone()
            value[LOST] = getattr(other, name)[LOST]
            rollout = replace(rollout, **{name: value})
    points = objective.points(rollout, NoiseKey(0))
    shape = points.x.shape
    old = torch.randn(shape, generator=draw)
    live, apart = old + moved * torch.randn(shape, generator=draw), moved * torch.randn(shape, generator=draw)
    if changed:
        live[LOST] += 1.0
    others = {"old": old, "ref": old + apart, "teacher": old - apart}
    return LossInputs(rollout, advantage, points, live.requires_grad_(), others)


def slope(objective: Any, seen: LossInputs) -> torch.Tensor:
    """The gradient of the loss in the live velocities ``[B, N, R, D]``."""
    return torch.autograd.grad(objective(seen).total, seen.live)[0]


def earned() -> torch.Tensor:
    """Advantages ``[B, 1, 1, 1]``; the largest and the smallest are of samples that one of two rewards could not judge,
    so that they are what the other one says alone."""
    value = torch.randn(BATCH, generator=torch.Generator().manual_seed(3))
    value[LOST] = torch.tensor([3.0, -3.0])
    return value[:, None, None, None]


@pytest.mark.parametrize("regions", [None, REGIONS], ids=["whole", "regions"])
@pytest.mark.parametrize("name", [*EXACT, *FIRST])
def test_what_is_done_to_a_sample_that_was_not_judged_changes_nothing(name: str, regions: torch.Tensor | None) -> None:
    objective = (EXACT | FIRST)[name]
    parts = 1 if regions is None else len(regions)
    valid = torch.ones(BATCH, 1, 1, parts, dtype=torch.bool)
    valid[LOST] = False
    advantage = Advantage(earned().repeat(1, 1, 1, parts), regions, valid)
    known = torch.ones(BATCH, dtype=torch.bool)
    known[LOST] = False
    before, after = (evidence(objective, advantage, changed=changed) for changed in (False, True))
    one, other = slope(objective, before), slope(objective, after)
    assert torch.equal(one[LOST], torch.zeros_like(one[LOST]))
    assert torch.equal(other[LOST], torch.zeros_like(one[LOST]))
    assert torch.allclose(one[known], other[known], atol=1e-8)
    assert one[known].abs().sum() > 0
    with torch.no_grad():
        assert float(objective(before).total) == pytest.approx(float(objective(after).total), abs=1e-6)
    free = slope(objective, replace(after, advantage=replace(advantage, valid=None)))
    assert not torch.allclose(free, other, atol=1e-6), "without the mask it would matter"


@pytest.mark.parametrize("name", [*EXACT, *FIRST])
def test_regions_paid_alike_are_none(name: str) -> None:
    objective = (EXACT | FIRST)[name]
    moved = 0.1 if name in EXACT else 0.0
    value = torch.randn(BATCH, 1, 1, 1, generator=torch.Generator().manual_seed(4))
    alike = value.expand(-1, -1, -1, 3).clone()
    if name in FIRST:
        objective = replace(objective, kl_weight=0.0)
    whole, divided = (
        slope(objective, evidence(objective, advantage, moved))
        for advantage in (Advantage(value), Advantage(alike, REGIONS))
    )
    assert whole.abs().sum() > 0
    assert torch.allclose(whole, divided, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", sorted({*EXACT, *FIRST} - {"nft", "corrective", "rwr", "distil", "dmd", "kvpo"}))
def test_a_region_without_a_reward_is_left_alone(name: str) -> None:
    """But for objectives in which an average sample is learned from as well, or siblings are a choice as a whole."""
    objective = (EXACT | FIRST)[name]
    if name in FIRST:
        objective = replace(objective, kl_weight=0.0)
    value = torch.zeros(BATCH, 1, 1, 3)
    value[..., 1] = torch.randn(BATCH, generator=torch.Generator().manual_seed(4))[:, None, None]
    found = slope(objective, evidence(objective, Advantage(value, REGIONS)))
    assert torch.equal(found[..., :5], torch.zeros_like(found[..., :5]))
    assert torch.equal(found[..., 8:], torch.zeros_like(found[..., 8:]))
    assert found[..., 5:8].abs().sum() > 0


def test_a_region_weighs_as_much_as_it_has_numbers_and_in_version_1_as_any_other() -> None:
    parts = torch.tensor([1.0, 10.0, 100.0]).reshape(1, 1, 1, 3)
    value = torch.zeros(1, 1, 1, 3)
    assert Advantage(value, REGIONS).average(parts) == pytest.approx(0.5 * 1 + 0.3 * 10 + 0.2 * 100)
    assert Advantage(value, REGIONS, equal_regions=True).average(parts) == pytest.approx(37.0)


def test_a_sample_that_was_not_judged_has_weight_zero_in_rwr_and_one_that_is_average_has_one() -> None:
    seen = evidence(RWR(), Advantage(torch.zeros(BATCH, 1, 1, 1)))
    valid = torch.ones(BATCH, 1, 1, 1, dtype=torch.bool)
    valid[LOST] = False
    error = (seen.live - seen.points.target).square().mean((1, 2, 3)).detach()
    with torch.no_grad():
        assert float(RWR()(seen).total) == pytest.approx(float(error.mean()), rel=1e-5)
        masked = RWR()(replace(seen, advantage=replace(seen.advantage, valid=valid))).total
    assert float(masked) == pytest.approx(float(error[valid.flatten()].sum() / BATCH), rel=1e-5)


def stale_weight(size: int, moved: float, reduce: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of 4000 transitions made by weights since moved: their importance weights, and the noise that made them."""
    count = 4000
    noise = torch.randn(count, 1, 1, size, generator=torch.Generator().manual_seed(5))
    table = torch.ones(count, 1, 1, 1)
    rollout = replace(
        trajectory(torch.Generator().manual_seed(0)),
        group=torch.zeros(count, dtype=torch.long), sample=torch.arange(count), latents=noise[:, :, 0],
        step=torch.zeros(count, 1, dtype=torch.long), sigma=table[..., 0], coefficients=StepCoefficients(table, table,
            table),
        trainable=torch.ones(count, 1, 1, dtype=torch.bool),
        noise_source_id=torch.zeros(count, 1, 1, dtype=torch.long), x=noise,
        x_next=noise, noise=noise, real=torch.zeros(count, dtype=torch.bool), v_behaviour=torch.zeros_like(noise),
    )  # fmt: skip
    old = torch.full_like(noise, moved)
    objective = ClippedRatio(reduce=reduce, kl_weight=0.0, truncation=1e9)
    advantage = torch.ones(count, 1, 1, 1, requires_grad=True)
    seen = LossInputs(rollout, Advantage(advantage), objective.points(rollout, NoiseKey(0)), old, {"old": old})
    weights = torch.autograd.grad(objective(seen).total, advantage)[0].flatten() * -count
    return weights, noise.flatten(1)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_a_stale_rollouts_weight_turns_its_mean_into_that_of_the_old_weights(reduce: str) -> None:
    """Under the rollout's weights ε ~ N(0, 1) in each of 25 numbers; under the old ones, moved by 0.1, ε ~ N(0.1, 1).
    The ratio is 1 at the old weights, so that the loss's slope in an advantage is the importance weight."""
    size, moved = 25, 0.1
    weights, noise = stale_weight(size, moved, reduce)
    expected = (moved * noise - 0.5 * moved**2).sum(1).exp()
    assert torch.allclose(weights, expected, rtol=1e-4)
    assert float(weights.mean()) == pytest.approx(1.0, abs=0.04)
    assert float((weights[:, None] * noise).mean()) == pytest.approx(moved, abs=0.01)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.01)
