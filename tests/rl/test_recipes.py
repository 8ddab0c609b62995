"""Every recipe raises its reward; limits in which one method is another; cards that say what they are."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from benchmarks.recipes import CONTESTANTS

from flowportrait.cli import main
from flowportrait.config import to_dict
from flowportrait.errors import BadInput
from flowportrait.flow.noise import NoiseKey
from flowportrait.models.arflow import ARFlow
from flowportrait.rl.allocation import Allocation, select_best_and_worst
from flowportrait.rl.collection import ScoredRollouts
from flowportrait.rl.config import Recipe
from flowportrait.rl.method_stages import HistoryRouting
from flowportrait.rl.objectives.interface import Advantage, Loss, LossInputs, noised_points
from flowportrait.rl.objectives.matching import NFT, RWR
from flowportrait.rl.objectives.preference import DPO, best_worst_pairs
from flowportrait.rl.objectives.ratio import AWM, SequenceRatio
from flowportrait.rl.plan import OdePlan, SlidingWindow
from flowportrait.rl.recipes import CARDS, EARLIER_NAMES, RECIPES, find_card, find_recipe
from flowportrait.rl.recipes.figures import CONTROLS, EXPECTED, REPORT, expected_figure
from flowportrait.rl.rollout import Trajectory
from flowportrait.rl.trainer import Trainer
from tests import ROOT
from tests.rl.test_posttrain import RECIPE, shake, trainer

RATES = {"nft": 3e-3, "awm": 3e-3, "flow-rwr": 3e-3, "flow-dpo": 1e-3, "kvpo": 3e-3, "guard": 1e-2}
"""Learning rates for the tiny policy; the others learn at 3e-3 as well."""


LEARNED, CHANCE = 0.4, 0.25
"""What learning adds to the reward at least (the least of all recipes adds 0.47), and what a walk without it moves it
by at most, up or down."""


def small(recipe: Recipe) -> Recipe:
    """A recipe cut to the tiny policy and its one reward, called by the names of the real ones."""
    allocation = Allocation(
        {"lift": 0.5} if recipe.allocation.steps else {}, {"lift": "mouth"} if recipe.allocation.regions else {}
    )
    return replace(
        recipe,
        plan=replace(recipe.plan, steps=4),  # type: ignore[type-var]
        groups=3,
        group_size=9 if recipe.name == "branch-grpo" else 8,
        frames=16,
        exploration=recipe.exploration and replace(recipe.exploration, keep=1, chunks=3),
        train_on=recipe.train_on and 6,
        learning_rate=RATES.get(recipe.name, 3e-3),
        allocation=allocation,
    )


def rise(recipe: Recipe) -> float:
    """What twelve iterations add to the reward of later prompts, over the start from the same noise: exactly nothing
    where nothing is learned."""
    run, start = trainer(recipe), trainer(recipe)
    for _ in range(12):
        run.step()
    gains = []
    for turn in range(50, 53):
        run.iteration = start.iteration = turn
        learned, first = (one.collect() for one in (run, start))
        own = ~first.trajectory.real
        gains.append(float((learned.scores["lift"].value - first.scores["lift"].value)[own].mean()))
    return sum(gains) / len(gains)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, card in CARDS.items()
        if not card.recipe.offline_data and not any(stage.distils for stage in card.recipe.active_stages)
    ],
)
def test_every_recipe_raises_its_reward(name: str) -> None:
    assert rise(small(find_recipe(name))) > LEARNED


def test_no_reward_rises_where_nothing_is_learned() -> None:
    assert rise(replace(small(find_recipe("flash-grpo")), learning_rate=0.0)) == 0.0


@pytest.mark.parametrize("seed", [1, 2])
def test_what_rises_when_siblings_keep_their_pay_does_not_when_they_swap_it(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another seed than the gains above: there a policy that learns gains 1.5 to 2.7, a random walk up to ±0.18."""
    recipe = replace(small(find_recipe("flash-grpo")), seed=seed)
    assert rise(recipe) > LEARNED
    credit, draw = Trainer.credit, torch.Generator().manual_seed(10 + seed)

    def swapped(run: Trainer, batch: ScoredRollouts) -> tuple[Advantage, dict[str, float]]:
        order = torch.cat([8 * group + torch.randperm(8, generator=draw) for group in range(3)])
        scores = {name: own._replace(value=own.value[order]) for name, own in batch.scores.items()}
        return credit(run, replace(batch, scores=scores))

    monkeypatch.setattr(Trainer, "credit", swapped)
    assert abs(rise(recipe)) < CHANCE


@pytest.mark.parametrize("name", CARDS)
def test_a_card_says_where_a_recipe_is_from_what_was_seen_what_is_ours_and_why(name: str) -> None:
    card = CARDS[name]
    assert card.name == name
    assert all(len(part) > 12 for part in (card.source, card.equation, card.paper, card.verified, card.reading))
    assert to_dict(card.recipe)["name"] == name
    of = {setting: {why for why in card.why if f"{setting}.".startswith(f"{why}.")} for setting in card.settings}
    assert [setting for setting in card.chosen if not of[setting]] == []
    assert set(card.why) == set().union(*of.values())


@pytest.mark.parametrize(("earlier", "name"), EARLIER_NAMES.items())
def test_a_recipe_without_its_papers_equations_keeps_the_papers_name_as_an_alias_that_says_so(
    earlier: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    card = find_card(earlier)
    assert "after the abstract of" in capsys.readouterr().err
    assert earlier not in CARDS
    assert card.recipe == replace(find_recipe(name), name=earlier), "a run that has the earlier name can be resumed"
    assert card.source.startswith("after the abstract of")
    assert earlier in card.verified


def test_a_card_is_listed_and_shown_with_its_values_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert main(["posttrain", "recipes", "show", "longcat-grpo"]) == 0
    shown = capsys.readouterr().out
    card = CARDS["longcat-grpo"]
    assert all(part in text for part in (card.source, card.verified, card.reading) for text in (listed, shown))
    assert "plan.shared: True, the paper's" in shown
    assert len(re.findall(r"^    verified: ", listed, re.M)) == len(CARDS)
    assert main(["posttrain", "recipes", "show", "longcat-grpo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["why"] == card.why


def finished(run: Trainer) -> Trajectory:
    run.recipe = replace(run.recipe, plan=OdePlan(steps=4))
    return run.collect().trajectory


def weigh(run: Trainer, objective: NFT | AWM | RWR | DPO, trajectory: Trajectory, value: torch.Tensor) -> torch.Tensor:
    """The objective's gradient in the head's last layer."""
    points = objective.points(trajectory, NoiseKey(0))
    with torch.no_grad():
        others = {}
        for role in ("ref", "old"):
            with run.roles.use("ref"):
                others[role] = run.velocity(trajectory, points)
    live = run.velocity(trajectory, points)
    evidence = LossInputs(trajectory, Advantage(value[:, None, None, None]), points, live, others)
    return torch.autograd.grad(objective(evidence).total, run.policy.head.write.weight)[0]


def test_nft_with_only_good_samples_is_supervised_matching_of_them() -> None:
    run = trainer()
    trajectory = finished(run)
    shake(run)
    objective = NFT(kl_weight=0.0)
    contrast = weigh(run, objective, trajectory, torch.full((24,), 1e9))
    points = objective.points(trajectory, NoiseKey(0))
    velocity = run.velocity(trajectory, points)
    error = points.sigma[..., None] * (velocity - points.target)
    supervised = (error.square() / error.detach().abs().mean(-1, keepdim=True)).mean()
    expected = torch.autograd.grad(supervised, run.policy.head.write.weight)[0]
    assert torch.allclose(contrast, expected, rtol=1e-4, atol=1e-7)


def test_nft_pushes_away_from_bad_samples_what_it_pulls_towards_when_good() -> None:
    run = trainer()
    trajectory = finished(run)
    good = weigh(run, NFT(kl_weight=0.0), trajectory, torch.full((24,), 1e9))
    bad = weigh(run, NFT(kl_weight=0.0), trajectory, torch.full((24,), -1e9))
    assert torch.allclose(good, -bad, rtol=1e-4, atol=1e-7)


def test_awm_at_the_old_weights_is_matching_weighted_by_the_advantage() -> None:
    run = trainer()
    trajectory, value = finished(run), torch.randn(24)
    objective = AWM(kl_weight=0.0)
    points = objective.points(trajectory, NoiseKey(0))
    velocity = run.velocity(trajectory, points)
    matching = (value[:, None, None] * (velocity - points.target).square().mean(-1)).mean()
    expected = torch.autograd.grad(matching, run.policy.head.write.weight)[0]
    assert torch.allclose(weigh(run, objective, trajectory, value), expected, rtol=1e-3, atol=1e-7)


def test_rwr_without_differences_is_supervised_matching() -> None:
    run = trainer()
    trajectory = finished(run)
    points = RWR().points(trajectory, NoiseKey(0))
    matching = (run.velocity(trajectory, points) - points.target).square().mean()
    expected = torch.autograd.grad(matching, run.policy.head.write.weight)[0]
    assert torch.allclose(weigh(run, RWR(), trajectory, torch.zeros(24)), expected, rtol=1e-4, atol=1e-7)


def test_a_pairs_noise_is_shared_and_ties_make_no_pair() -> None:
    run = trainer()
    trajectory = finished(run)
    points = noised_points(trajectory, 3, NoiseKey(0), by_group=True)
    noise = points.target + trajectory.latents[:, :, None]
    assert torch.allclose(noise[:8], noise[:1].expand(8, -1, -1, -1), atol=1e-5)
    assert not torch.allclose(noise[0], noise[8], atol=1e-2)
    score = torch.cat([torch.zeros(8), torch.arange(16.0)])
    winners, losers, _ = best_worst_pairs(score[:, None], trajectory.group, trajectory.real)
    assert winners.tolist() == [15, 23]
    assert losers.tolist() == [8, 16]
    assert torch.equal(weigh(run, DPO(), trajectory, torch.zeros(24)), torch.zeros_like(run.policy.head.write.weight))


def test_dpo_at_the_reference_weighs_winner_and_loser_alike_and_oppositely() -> None:
    run = trainer()
    trajectory = finished(run)
    score = torch.randn(24)
    assert torch.allclose(
        weigh(run, DPO(beta=2.0), trajectory, score), -weigh(run, DPO(beta=2.0), trajectory, -score), atol=1e-6
    )


def test_one_window_over_every_noisy_step_is_flow_grpo() -> None:
    whole, window = trainer(), trainer(replace(RECIPE, plan=SlidingWindow(steps=4, width=3, dwell=1)))
    for run in (whole, window):
        run.step()
    for a, b in zip(whole.policy.parameters(), window.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_real_clip_stands_in_every_group_and_comes_back_from_its_latents() -> None:
    run = trainer(small(find_recipe("exemplar-ratio")))
    batch = run.collect()
    trajectory = batch.trajectory
    assert trajectory.real.sum() == 3
    assert len(trajectory) == 3 * 9
    spoken = run.task.draw(3, 0, 0).motion
    shown = run.policy.to_motion(trajectory.latents, trajectory.condition.start)[trajectory.real]
    assert torch.allclose(shown, spoken[:, 1:], atol=1e-3)
    implied = trajectory.coefficients.noise(trajectory.x, trajectory.x_next, run.velocity(trajectory))
    assert torch.allclose(implied[trajectory.real], trajectory.noise[trajectory.real], atol=1e-2)


def test_a_group_normalised_by_its_own_samples_does_not_turn_them_all_negative() -> None:
    negative = {}
    for baseline in ("rollouts", "all"):
        recipe = small(find_recipe("exemplar-ratio"))
        run = trainer(replace(recipe, exemplars=replace(recipe.exemplars, baseline=baseline)))  # type: ignore[type-var]
        batch = run.collect()
        scores = {"lift": batch.scores["lift"]._replace(value=batch.scores["lift"].value + 90 * batch.trajectory.real)}
        advantage, metrics = run.credit(replace(batch, scores=scores))
        negative[baseline] = metrics["exemplar/negative"]
        assert (advantage.per_sample[batch.trajectory.real] > 0).all()
        assert advantage.per_sample.max() <= recipe.exemplars.limit + 1e-6 or baseline == "rollouts"
    assert negative["all"] > 0.95
    assert 0.3 < negative["rollouts"] < 0.7


def test_extremes_are_the_best_and_the_worst_of_every_group() -> None:
    score, group = torch.tensor([5.0, 1, 3, 2, 4, 9, 8, 7, 6, 0]), torch.tensor([0] * 5 + [1] * 5)
    assert select_best_and_worst(score, group, 2).tolist() == [0, 1, 5, 9]
    assert select_best_and_worst(score, group, 99).tolist() == list(range(10))
    assert select_best_and_worst(score, group, None).tolist() == list(range(10))


def test_a_routed_past_changes_what_comes_and_not_what_is_stored() -> None:
    run = trainer(replace(RECIPE, frames=20))
    policy: ARFlow = run.policy
    condition = run.task.condition(policy, run.task.draw(3, 0, 0))
    latents = torch.randn(3, condition.chunks, policy.latent_dim)
    true = policy.session(condition)
    routed = HistoryRouting(keep=1, chunks=2).start_session(policy, condition, torch.arange(3), NoiseKey(0))
    apart = []
    with torch.no_grad():
        for chunk in range(condition.chunks):
            apart.append(float((true.context() - routed.context()).abs().max()))
            true.append(latents[:, chunk])
            routed.append(latents[:, chunk])
    changed = [chunk for chunk, gap in enumerate(apart) if gap > 1e-6]
    assert changed
    assert set(changed) <= {routed.first, routed.first + 1}
    with pytest.raises(BadInput, match="5 chunks leave no past to explore beyond the 4 nearest: raise frames"):
        HistoryRouting().start_session(policy, condition, torch.arange(3), NoiseKey(0))


@dataclass(frozen=True)
class Terse(SequenceRatio):
    """Says of its ratio the mean and nothing else, as a first objective of one's own does."""

    def __call__(self, evidence: LossInputs) -> Loss:
        found = super().__call__(evidence)
        return Loss(found.total, {"ratio/mean": found.metrics["ratio/mean"]})


def test_what_an_objective_logs_is_its_own_affair() -> None:
    assert trainer(replace(RECIPE, objective=Terse())).step()["ratio/first_error"] == 0.0


def test_the_guides_own_recipe_raises_its_reward_too(monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (ROOT / "docs" / "guides" / "recipes.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python title=\"better_half.py\"\n(.*?)```", guide, re.S)
    monkeypatch.setattr("flowportrait.rl.post_trainer.PostTrainer.train", lambda _: None)
    script: dict[str, Any] = {"__name__": __name__}
    exec(block, script)
    assert rise(small(script["CARD"].recipe)) > LEARNED


def test_the_figure_to_expect_is_that_of_the_report_and_stands_beside_the_control() -> None:
    report = (ROOT / REPORT).read_text(encoding="utf-8").replace("*", "").partition("## Finished videos")[0]
    earlier = {name: old for old, name in EARLIER_NAMES.items()}
    rows = {cells[0]: cells[3] for line in report.splitlines() if len(cells := _cells(line)) > 4}
    for name, figure in EXPECTED.items():
        assert name in RECIPES
        assert rows[earlier.get(name, name)] == figure
    assert {"ratio": rows["flow-grpo, random rewards"], "matching": rows["nft, random rewards"]} == CONTROLS
    assert CONTROLS["ratio"] in expected_figure("flow-grpo")
    assert EXPECTED["flow-grpo"] in expected_figure("flow-grpo")
    assert expected_figure("portraitgen").startswith("not measured")
    for name in RECIPES:
        figure = expected_figure(name)
        if "--only" in figure:
            assert figure.endswith(f"--only {name}")
            assert name in CONTESTANTS, "the command can be run"
        elif figure.startswith("figures"):
            assert f"`{name}" in (ROOT / figure.rpartition(" ")[2]).read_text(encoding="utf-8")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
