"""The evaluation's judge of pairs can be used to judge and cannot be used as a reward."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from flowportrait.errors import BadInput
from flowportrait.evaluation.pair_judge import FILE, EvaluationPreference, preferred_share
from flowportrait.files import shipped_weights
from flowportrait.preferences.dataset import DIMENSIONS
from flowportrait.preferences.preference_rewards import load_preference_reward
from flowportrait.preferences.reward_model import MotionReward
from flowportrait.rewards.registry import RewardOptions, build_reward
from flowportrait.rewards.sync import MotionSyncExpert
from tests import ROOT

REFUSED = "trained for the evaluation side and cannot be used for the reward side"
REWARD_SIDE = ("rewards", "rl", "judges", "preferences", "training", "pipelines", "commands/posttrain.py")


@pytest.fixture
def judge_folder(tmp_path: Path) -> Path:
    """The folder of a judge with random weights, marked as one of the evaluation."""
    torch.manual_seed(0)
    MotionReward().save(tmp_path / FILE, side="evaluation")
    return tmp_path


def test_a_judge_of_the_evaluation_is_refused_wherever_a_reward_is_read(judge_folder: Path) -> None:
    with pytest.raises(BadInput, match=REFUSED):
        MotionReward.read(judge_folder / FILE)
    with pytest.raises(BadInput, match=REFUSED):
        load_preference_reward("preference", judge_folder)
    with pytest.raises(BadInput, match=REFUSED):
        build_reward("preference_sync", RewardOptions(preference=judge_folder))


def test_the_shipped_judge_is_refused_as_a_reward() -> None:
    with pytest.raises(BadInput, match=REFUSED):
        build_reward("preference", RewardOptions(preference=shipped_weights("pair_judge")))


def test_the_class_of_the_judge_is_refused_as_a_reward() -> None:
    with pytest.raises(BadInput, match="is no reward"):
        build_reward("flowportrait.evaluation.pair_judge:EvaluationPreference")


def test_a_reward_model_is_refused_as_a_judge() -> None:
    with pytest.raises(BadInput, match="trained for the reward side and cannot be used for the evaluation side"):
        MotionReward.read(shipped_weights("preference/model.safetensors"), side="evaluation")


def test_nothing_that_trains_imports_the_judge() -> None:
    package = ROOT / "src" / "flowportrait"
    files = [
        path for name in REWARD_SIDE for path in [package / name, *(package / name).rglob("*.py")] if path.is_file()
    ]
    assert len(files) > 50
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert "flowportrait.evaluation.pair_judge" not in names, path


def test_the_judge_does_not_hear_with_the_ears_of_the_rewards() -> None:
    own, rewards = EvaluationPreference.load().model.listener.state_dict(), MotionSyncExpert.load().state_dict()
    weights = [name for name in own if name.endswith("weight") and own[name].ndim > 1]
    assert len(weights) > 5
    assert not any(torch.allclose(own[name], rewards[name], atol=1e-3) for name in weights)


def test_scores_are_one_for_each_dimension_and_do_not_depend_on_the_other_clips() -> None:
    judge, rng = EvaluationPreference.load(), torch.Generator().manual_seed(0)
    motion, mel = torch.randn(3, 40, 30, generator=rng), torch.randn(3, 160, 80, generator=rng)
    scores = judge.score_motion(motion, mel)
    assert scores.shape == (3, len(DIMENSIONS))
    assert torch.allclose(judge.score_motion(motion[:1], mel[:1]), scores[:1], atol=1e-4)


def test_ties_are_halves_and_clips_without_a_partner_are_left_out() -> None:
    before = {"a": 0.0, "b": 0.0, "c": 0.0, "d": 0.0}
    after = {"a": 1.0, "b": -1.0, "c": 0.05, "d": 1.0, "e": 5.0}
    share = preferred_share(after, before, tie=0.1)
    assert share is not None
    assert share.mean == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert share.clips == 4
    assert preferred_share({"x": 1.0}, before) is None
