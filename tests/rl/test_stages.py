"""Methods are stages that a recipe hands over: the trainer knows none of them, and a new one needs no change in it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flowportrait.config import save
from flowportrait.errors import BadInput
from flowportrait.rewards.interface import Score
from flowportrait.rl import learner
from flowportrait.rl import trainer as trainer_module
from flowportrait.rl.collection import ScoredRollouts
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.credit import BatchCredit
from flowportrait.rl.method_stages import Teacher
from flowportrait.rl.objectives.interface import Advantage
from flowportrait.rl.objectives.ratio import ClippedRatio
from flowportrait.rl.plan import OdePlan
from flowportrait.rl.recipes import CARDS, find_card, find_recipe, recipe_texts
from flowportrait.rl.rollout import Trajectory
from flowportrait.rl.stages import IterationRollouts, Metrics, RoleLearner, RoleView, Stage
from flowportrait.training.state import read_state, write_state
from tests.rl.test_posttrain import RECIPE, tiny_policy, trainer, weights
from tests.rl.test_recipes import LEARNED, rise, small

METHODS = {
    "exploration", "exemplars", "teacher", "critic", "offline_data", "disturbance", "allocation", "objective", "plan",
}  # fmt: skip
"""Fields of a recipe that choose a method."""


@dataclass(frozen=True)
class Opposite(Stage):
    """Turns every score round: the simplest method that nobody has published."""

    strength: float = 1.0

    def adjust_scores(self, scores: Mapping[str, Score], trajectory: Trajectory) -> Mapping[str, Score]:
        return {name: score._replace(value=-self.strength * score.value) for name, score in scores.items()}


@dataclass(frozen=True)
class Witness(Stage):
    """Overrides every hook, and changes nothing but the names in ``called``."""

    called: list[str] = field(default_factory=list)

    def prepare_policy(self, policy: Any, steps: int) -> tuple[Any, Mapping[str, RoleView]]:
        self.called.append("prepare_policy")
        return super().prepare_policy(policy, steps)

    def collect_batch(self, rollouts: IterationRollouts, collect: Callable[[], ScoredRollouts]) -> ScoredRollouts:
        self.called.append("collect_batch")
        assert rollouts.sample_count == RECIPE.groups * RECIPE.group_size
        return super().collect_batch(rollouts, collect)

    def start_session(self, policy: Any, condition: Any, sample: torch.Tensor, key: Any) -> Any:
        self.called.append("start_session")
        return policy.session(condition)

    def augment_rollout(self, trajectory: Trajectory, groups: torch.Tensor, plan: Any, rollouts: Any) -> Trajectory:
        self.called.append("augment_rollout")
        return super().augment_rollout(trajectory, groups, plan, rollouts)

    def adjust_scores(self, scores: Mapping[str, Score], trajectory: Trajectory) -> Mapping[str, Score]:
        self.called.append("adjust_scores")
        return super().adjust_scores(scores, trajectory)

    def baseline_rows(self, trajectory: Trajectory) -> torch.Tensor | None:
        self.called.append("baseline_rows")
        return torch.ones(len(trajectory), dtype=torch.bool)

    def adjust_advantage(
        self, advantage: Advantage, trajectory: Trajectory, credit: BatchCredit
    ) -> tuple[Advantage, Metrics]:
        self.called.append("adjust_advantage")
        return advantage, {"witness/samples": float(credit.sample_count)}

    def before_update(self, trajectory: Trajectory, learner: RoleLearner) -> tuple[Trajectory, Metrics]:
        self.called.append("before_update")
        return super().before_update(trajectory, learner)


def test_a_method_made_of_a_stage_alone_is_trained() -> None:
    assert rise(replace(small(find_recipe("flash-grpo")), stages=(Opposite(),))) < -LEARNED


def test_every_hook_is_called_and_a_stage_that_changes_nothing_changes_no_bit() -> None:
    seen = Witness()
    plain, watched = trainer(RECIPE), trainer(replace(RECIPE, stages=(seen,)))
    before, after = plain.step(), watched.step()
    hooks = {name for name, _ in inspect.getmembers(Stage, inspect.isfunction)}
    assert set(seen.called) == hooks
    assert all(torch.equal(a, b) for a, b in zip(weights(plain, "live"), weights(watched, "live"), strict=True))
    assert after["witness/samples"] == RECIPE.groups * RECIPE.group_size
    assert before["reward/lift"] == after["reward/lift"]


@pytest.mark.parametrize("module", [trainer_module, learner], ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_trainer_has_no_branch_on_the_method(module: Any) -> None:
    tree = ast.parse(inspect.getsource(module))
    branches = [node.test for node in ast.walk(tree) if isinstance(node, (ast.If, ast.IfExp, ast.While))]
    filters = [test for node in ast.walk(tree) if isinstance(node, ast.comprehension) for test in node.ifs]
    asked = {part.attr for test in branches + filters for part in ast.walk(test) if isinstance(part, ast.Attribute)}
    assert asked & METHODS == set()
    assert {part.name for part in fields(PostTrainConfig)} >= METHODS
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert "isinstance" not in names
    assert not any(isinstance(stage, Stage) and type(stage).__name__ in names for stage in _stages_of_recipes())


def _stages_of_recipes() -> list[Stage]:
    return [stage for card in CARDS.values() for stage in card.recipe.active_stages]


def test_stages_are_called_in_the_order_of_the_fields_and_then_of_the_list() -> None:
    found = replace(find_recipe("kvpo"), stages=(Opposite(2.0), Opposite(3.0))).active_stages
    assert [type(stage).__name__ for stage in found] == ["HistoryRouting", "Opposite", "Opposite"]
    assert [stage.strength for stage in found[1:]] == [2.0, 3.0]  # type: ignore[attr-defined]


def test_a_role_that_nobody_adds_or_learns_from_is_refused() -> None:
    with pytest.raises(BadInput, match="A stage adds the role 'teacher', which the objective does not learn from"):
        replace(find_recipe("flow-grpo"), teacher=Teacher())
    with pytest.raises(BadInput, match="The objective learns from the role 'teacher', which no stage"):
        replace(find_recipe("distil"), teacher=None)
    with pytest.raises(BadInput, match="fresh rollouts alone"):
        replace(find_recipe("distil"), staleness=1)
    assert replace(find_recipe("distil"), teacher=None, objective=ClippedRatio(), plan=OdePlan()).active_stages == ()


def test_scores_of_a_teacher_are_not_among_the_rewards() -> None:
    recipe = replace(
        find_recipe("distil"), plan=OdePlan(steps=1, keep_path=True), groups=3, group_size=4, frames=16, updates=2
    )
    batch = trainer(recipe, size=0.3).collect()
    assert set(batch.scores) == set(batch.comparison_scores) == {"lift"}
    assert len(batch.scores["lift"].value) == 12
    assert len(batch.comparison_scores["lift"].value) == 3 * 2


def test_a_recipe_of_another_package_trains_and_is_resumed_by_its_name(plugin_package: Path, tmp_path: Path) -> None:
    assert list(recipe_texts()) == [*CARDS, "calm"]
    assert find_card("calm").source == "somebody's paper"
    recipe = replace(PostTrainConfig.from_recipe("calm"), groups=3, group_size=8, frames=16, plan=RECIPE.plan)
    straight, first = trainer(recipe), trainer(recipe)
    for run in (straight, first):
        run.step()
    straight.step()
    save(first.recipe, tmp_path / "recipe.json")
    write_state(first, tmp_path / "state")
    again = PostTrainConfig.from_json(tmp_path / "recipe.json")
    assert again.name == "calm"
    assert again.stages[0].strength == 1.0  # type: ignore[attr-defined]
    second = trainer(again)
    read_state(second, tmp_path / "state")
    second.step()
    assert all(torch.equal(a, b) for a, b in zip(weights(straight, "live"), weights(second, "live"), strict=True))


def test_a_recipe_of_a_script_is_named_by_module_and_attribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_recipes.py").write_text(
        "from flowportrait.rl.config import PostTrainConfig\n"
        "from flowportrait.rl.recipes.card import Card\n"
        "CARD = Card(PostTrainConfig('steep', learning_rate=0.5), 'a', 'b', 'c', 'd', 'e')\n"
        "NUMBER = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    recipe = PostTrainConfig.from_recipe("own_recipes:CARD", groups=4)
    assert (recipe.name, recipe.learning_rate, recipe.groups) == ("own_recipes:CARD", 0.5, 4)
    save(recipe, tmp_path / "recipe.json")
    assert PostTrainConfig.from_json(tmp_path / "recipe.json") == recipe
    with pytest.raises(BadInput, match="The recipe 'own_recipes:NUMBER' is of type int: make it a Card"):
        find_recipe("own_recipes:NUMBER")
    with pytest.raises(BadInput, match="No recipe named 'grpo': choose from flow-grpo, "):
        find_recipe("grpo")


def test_a_policy_is_not_changed_by_the_trainer_that_distils_it() -> None:
    from flowportrait.rewards.registry import CompositeReward
    from flowportrait.rl.task import SpeechItem, TalkingTask
    from flowportrait.rl.trainer import Trainer

    policy = tiny_policy()
    before = policy.config
    task = TalkingTask([SpeechItem(torch.randn(80, 80), 0)], 16, None, policy.config.chunk)
    recipe = replace(find_recipe("distil"), plan=OdePlan(steps=1, keep_path=True), groups=2, frames=16)
    run = Trainer(policy, task, recipe, CompositeReward((), {}))
    assert policy.config == before
    assert run.policy.config.steps == 1
