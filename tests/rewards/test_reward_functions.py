"""A plain function is a reward, wherever rewards are named; so are classes, objects and names."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from flowportrait.errors import BadInput
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid, as_reward, score_batch
from flowportrait.rewards.registry import CompositeReward, load_reward
from flowportrait.rl.trainer import Trainer
from tests.rl.test_posttrain import RECIPE, Lift, trainer


def lifted(batch: RewardBatch) -> torch.Tensor:
    return batch.motion[..., 0].mean(1)


def lifted_by_half(batch: RewardBatch) -> torch.Tensor:
    return torch.stack([half.mean(1) for half in batch.motion[..., 0].chunk(2, 1)], 1)


def of_frames(batch: RewardBatch) -> torch.Tensor:
    return batch.frames((0,)).mean((1, 2, 3, 4))


of_frames.needs = frozenset({"frames"})  # type: ignore[attr-defined]


@dataclass
class Counting:
    """A reward by its attributes, that does not ask for arguments."""

    name: str = "counting"
    needs: frozenset[str] = frozenset({"motion"})
    range: tuple[float, float] = (0.0, 10.0)

    def __call__(self, batch: RewardBatch) -> Score:
        return all_valid(torch.arange(float(len(batch))))


def batch(samples: int = 3, frames: int = 8) -> RewardBatch:
    motion = torch.randn(samples, frames, 30, generator=torch.Generator().manual_seed(0))
    return RewardBatch(motion, torch.zeros(samples, 4 * frames, 80))


def test_a_function_is_scored_as_the_class_that_says_the_same() -> None:
    given = batch()
    assert torch.equal(score_batch(as_reward(lifted), given).value, score_batch(Lift(), given).value)
    assert (as_reward(lifted).name, as_reward(lifted).needs) == ("lifted", {"motion"})


def test_numbers_per_part_of_a_clip_pay_the_frames_of_the_part() -> None:
    given = batch(frames=9)
    found = score_batch(as_reward(lifted_by_half), given)
    parts = lifted_by_half(given)
    assert torch.allclose(found.value, parts.mean(1))
    assert found.dense is not None
    assert torch.equal(found.dense, parts[:, [0, 0, 0, 0, 0, 1, 1, 1, 1]])


def test_what_is_not_finite_is_invalid_and_another_shape_is_an_error() -> None:
    given = batch()
    found = score_batch(as_reward(lambda _: torch.tensor([1.0, math.nan, 2.0])), given)
    assert found.valid.tolist() == [True, False, True]
    with pytest.raises(ValueError, match=r"lambda returns scores of shape \(2,\) for 3 samples"):
        score_batch(as_reward(lambda _: torch.zeros(2)), given)
    with pytest.raises(ValueError, match=r"shape \(3, 2, 2\)"):
        score_batch(as_reward(lambda _: torch.zeros(3, 2, 2)), given)


def test_a_function_may_say_what_it_needs() -> None:
    assert CompositeReward.of([of_frames]).needs == {"frames"}
    with pytest.raises(BadInput, match="'of_frames' needs frames"):
        CompositeReward.of([of_frames])(batch())


def test_functions_classes_objects_and_names_stand_beside_each_other() -> None:
    composite = CompositeReward.of({"head": 0.5, lifted: 0.3, Counting: 0.2, Lift(): 0.1, lifted_by_half: 0.0})
    assert composite.weights == {"head": 0.5, "lifted": 0.3, "counting": 0.2, "lift": 0.1}
    assert set(composite(batch(frames=32))) == set(composite.weights)
    assert CompositeReward.of([lifted, "head"]).weights == {"lifted": 1.0, "head": 1.0}


def test_a_reward_of_a_script_is_called_as_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards.py").write_text(
        "def first(batch):\n    return batch.motion[..., 0].mean(1)\n\n\n"
        "class Second:\n    name = 'second'\n    needs = frozenset({'motion'})\n    range = (0.0, 1.0)\n\n"
        "    def __call__(self, batch):\n        from flowportrait.rewards.interface import all_valid\n"
        "        return all_valid(batch.motion[..., 0].mean(1) * 0 + 2)\n\n\nTHIRD = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    composite = CompositeReward.of({"own_rewards:first": 1.0, "own_rewards:Second": 1.0})
    assert list(composite.weights) == ["own_rewards:first", "own_rewards:Second"]
    found = composite(batch())
    assert torch.equal(found["own_rewards:first"].value, lifted(batch()))
    assert not found["own_rewards:Second"].valid.any(), "its range is kept under the other name"
    with pytest.raises(BadInput, match="3 is no reward: give a name, a function"):
        load_reward("own_rewards:THIRD")


def test_two_rewards_of_one_name_and_a_class_that_wants_arguments_are_refused() -> None:
    with pytest.raises(BadInput, match="Two rewards are called 'lift'"):
        CompositeReward.of([Lift(), Lift("lift", frozenset({"mel"}))])
    with pytest.raises(BadInput, match="The reward Loud cannot be made without arguments"):
        as_reward(type("Loud", (), {"__init__": lambda self, number: None, "__call__": lifted}))


def test_a_function_trains_a_policy_to_the_bits_of_the_reward_that_says_the_same() -> None:
    written, plain = trainer(RECIPE), trainer(RECIPE)
    plain = Trainer(trainer(RECIPE).policy, plain.task, replace(RECIPE), CompositeReward.of({lifted: 1.0}))
    written.step()
    assert "reward/lifted" in plain.step()
    pairs = zip(written.policy.parameters(), plain.policy.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
