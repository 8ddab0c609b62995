"""Claims about learning from given clips: stated pairs, ratings, damaged footage; and about the losses they meet."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from flowportrait.cli import main
from flowportrait.data.motion_dataset import MotionClip
from flowportrait.errors import BadInput
from flowportrait.flow.noise import NoiseKey
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.preferences.dataset import NOT_JUDGED, Label, PreferencePair, write_pairs
from flowportrait.rendering.motion_files import write_motion
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.config import Recipe
from flowportrait.rl.objectives.interface import Advantage, LossInputs
from flowportrait.rl.objectives.preference import DPO, Threshold
from flowportrait.rl.offline_data import (
    OfflineDataConfig,
    OfflineTask,
    PreferenceGroup,
    clip_window_source,
    damaged_clip_source,
    labels_to_scores,
    read_preference_groups,
)
from flowportrait.rl.post_trainer import recipe_for_pairs
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.rollout import EvaluationPoints
from flowportrait.rl.trainer import Trainer
from tests.models.test_generator import TINY
from tests.rl.test_posttrain import tiny_policy, weights

FRAMES = 16


def clip(seed: int, lift: float = 0.0, frames: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Motion whose lips open with the sound's loudness; ``lift`` raises the first number."""
    draw = torch.Generator().manual_seed(seed)
    loud = torch.randn(frames, 1, generator=draw)
    motion = 0.1 * torch.randn(frames, 30, generator=draw) + 0.5 * loud
    motion[:, 0] += lift * torch.arange(frames) / frames
    return motion, torch.randn(4 * frames, 80, generator=draw) + loud.repeat_interleave(4, 0)


def preferred(count: int = 4, better: float = 3.0, worse: float = -3.0) -> list[PreferenceGroup]:
    """Pairs in which the clip that rises is preferred."""
    return [
        PreferenceGroup([clip(i, better), clip(i, worse)], {"sync": torch.tensor([1.0, 0.0])}) for i in range(count)
    ]


def run(families: list[PreferenceGroup], recipe: Recipe | None = None, learning_rate: float = 2e-3) -> Trainer:
    recipe = recipe or recipe_for_pairs(find_recipe("flow-dpo"))
    recipe = replace(recipe, groups=4, frames=FRAMES, learning_rate=learning_rate)
    task = OfflineTask(clip_window_source(families, FRAMES, ["sync"]), TINY.chunk)
    return Trainer(tiny_policy(), task, recipe, CompositeReward((), {"sync": 1.0}))


def weigh(trainer: Trainer, objective: DPO | Threshold, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and its gradient in the head, on the first batch, at the weights now in the policy."""
    trajectory = trainer.collect().trajectory
    points = objective.points(trajectory, NoiseKey(0))
    with torch.no_grad(), trainer.roles.use("ref"):
        reference = trainer.velocity(trajectory, points)
    live = trainer.velocity(trajectory, points)
    evidence = LossInputs(trajectory, Advantage(value[:, None, None, None]), points, live, {"ref": reference})
    loss = objective(evidence).total
    return loss.detach(), torch.autograd.grad(loss, trainer.policy.head.write.weight)[0]


BETTER = torch.tensor([1.0, -1.0]).repeat(4)


@pytest.mark.parametrize("objective", [DPO(), DPO(level="derived"), Threshold()])
def test_at_the_reference_the_loss_is_log_two_and_its_gradient_turns_with_the_preference(objective: DPO) -> None:
    trainer = run(preferred())
    loss, one_way = weigh(trainer, objective, BETTER)
    _, other_way = weigh(trainer, objective, -BETTER)
    assert loss == pytest.approx(math.log(2), abs=1e-6)
    assert one_way.abs().max() > 1e-4
    assert torch.allclose(one_way, -other_way, atol=1e-6)


def test_a_pair_of_identical_clips_teaches_nothing_whatever_was_said() -> None:
    trainer = run(preferred(better=1.0, worse=1.0))
    for parameter in trainer.policy.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    loss, slope = weigh(trainer, DPO(), BETTER)
    assert loss == pytest.approx(math.log(2), abs=1e-6)
    assert slope.abs().max() < 1e-6


def test_a_tie_makes_no_pair() -> None:
    tied = [family._replace(scores={"sync": labels_to_scores(torch.tensor(Label.TIE.value))}) for family in preferred()]
    assert run(tied).step()["pairs"] == 0
    unjudged = [family._replace(scores={"sync": labels_to_scores(torch.tensor(NOT_JUDGED))}) for family in preferred(2)]
    assert run(preferred(2) + unjudged).step()["pairs"] == 1.0  # two pairs of four, over two updates
    alone = run(preferred(1) + [unjudged[0]] * 3)
    assert [alone.step()["pairs"] for _ in range(6)] == [0.5] * 6  # whichever of the two updates it falls into


def test_the_derived_beta_is_the_constant_one_shrunk_with_the_noise() -> None:
    trainer = run(preferred())
    trajectory = trainer.collect().trajectory
    points = DPO().points(trajectory, NoiseKey(0))
    level = 0.3
    points = EvaluationPoints(points.x, torch.full_like(points.sigma, level), points.target)
    live, reference = torch.randn(2, *points.x.shape)
    evidence = LossInputs(trajectory, Advantage(BETTER[:, None, None, None]), points, live, {"ref": reference})
    derived = DPO(beta=2.0, level="derived")(evidence).total
    assert torch.allclose(derived, DPO(beta=2.0 * (1 - level) ** 2)(evidence).total)
    assert not torch.allclose(derived, DPO(beta=2.0)(evidence).total)


def test_each_region_has_its_own_winner_and_sees_its_own_numbers() -> None:
    trainer = run(preferred())
    trajectory = trainer.collect().trajectory
    points = DPO().points(trajectory, NoiseKey(0))
    live, reference = torch.randn(2, *points.x.shape)
    mouth = trainer.task.regions["mouth"]
    regions = torch.stack([mouth, 1 - mouth])

    def loss(mouth_is_better: float, rest_is_better: float, live: torch.Tensor) -> torch.Tensor:
        value = torch.stack([mouth_is_better * BETTER, rest_is_better * BETTER], -1)[:, None, None]
        return DPO(beta=1.0)(LossInputs(trajectory, Advantage(value, regions), points, live, {"ref": reference})).total

    both, first, second = loss(1, -1, live), loss(1, 0, live), loss(0, -1, live)
    assert both == pytest.approx(float(first + second), rel=1e-5)
    elsewhere = live + (1 - mouth) * torch.randn_like(live)
    assert torch.allclose(loss(1, 0, elsewhere), first)
    assert not torch.allclose(loss(0, -1, elsewhere), second)


def test_the_anchor_is_matching_of_the_winner() -> None:
    trainer = run(preferred())
    trajectory = trainer.collect().trajectory
    points = DPO().points(trajectory, NoiseKey(0))
    live, reference = torch.randn(2, *points.x.shape)
    evidence = LossInputs(trajectory, Advantage(BETTER[:, None, None, None]), points, live, {"ref": reference})
    matching = (live - points.target).square()[::2].mean()
    assert torch.allclose(DPO(anchor=0.5)(evidence).total - DPO()(evidence).total, 0.5 * matching)


@pytest.mark.parametrize(("name", "rate"), [("flow-dpo", 2e-3), ("flow-rwr", 1e-2), ("awm", 2e-3)])
def test_what_was_preferred_becomes_likelier(name: str, rate: float) -> None:
    trainer = run(preferred(), recipe_for_pairs(find_recipe(name)), rate)

    def gap() -> float:
        """How much better the preferred clips are matched than the others."""
        trajectory = trainer.collect().trajectory
        points = DPO(states=4).points(trajectory, NoiseKey(1))
        with torch.no_grad():
            error = (trainer.velocity(trajectory, points) - points.target).square().flatten(1).mean(1)
        return float(error[1::2].mean() - error[::2].mean())

    before = gap()
    for _ in range(8):
        trainer.step()
    assert gap() > before


def test_ratings_above_the_batchs_mean_gain_and_those_below_lose() -> None:
    rated = [
        PreferenceGroup([clip(i, lift)], {"sync": torch.tensor([3 + lift / 2])})
        for i, lift in enumerate((3, 3, -3, -3))
    ]
    trainer = run(rated, recipe_for_pairs(find_recipe("threshold")))
    assert trainer.recipe.group_size == 1
    records = [trainer.step() for _ in range(8)]
    assert records[-1]["winner_gain"] > records[-1]["loser_gain"]


def test_a_resumed_offline_run_sees_the_same_clips() -> None:
    source = clip_window_source(preferred(), FRAMES, ["sync"])
    again, later = source(4, 0, 3), source(4, 0, 4)
    assert torch.equal(source(4, 0, 3).motion, again.motion)
    assert not torch.equal(later.motion, again.motion)


def test_damage_goes_from_coarse_to_subtle_and_leaves_one_clip_of_each_pair_intact() -> None:
    clips = [MotionClip(str(i), f"s{i}", *clip(i, frames=40), torch.zeros(19)) for i in range(4)]
    given = OfflineDataConfig(clips="damaged", weights={"sync": 1.0}, damages=("time-warp",), curriculum=10)
    source = damaged_clip_source(clips, given, 20)

    def distance(iteration: int) -> float:
        shown = source(32, 0, iteration)
        assert shown.motion.shape == (32, 2, 21, 30)
        assert set(shown.scores) == {"sync"}
        best = shown.scores["sync"].argmax(1)
        for motion, mel, row in zip(shown.motion, shown.mel, best, strict=True):
            real = [c for c in clips for s in range(20) if torch.equal(c.motion[s : s + 21], motion[row])]
            assert len(real) == 1
            assert torch.equal(mel[0], mel[1])
        return float((shown.motion[:, 0] - shown.motion[:, 1]).abs().mean())

    assert distance(10) < distance(0)
    with pytest.raises(BadInput, match="at most"):
        damaged_clip_source(clips, given, 24)


def test_sync_dpo_learns_to_tell_the_clip_in_time() -> None:
    clips = [MotionClip(str(i), f"s{i}", *clip(i, frames=40), torch.zeros(19)) for i in range(4)]
    recipe = replace(find_recipe("sync-dpo"), groups=8, learning_rate=1e-3)
    assert recipe.offline_data is not None
    task = OfflineTask(damaged_clip_source(clips, recipe.offline_data, recipe.frames), TINY.chunk)
    trainer = Trainer(tiny_policy(), task, recipe, CompositeReward((), recipe.offline_data.weights))
    records = [trainer.step() for _ in range(10)]
    assert sum(record["margin"] for record in records[-4:]) > 0


def write_performances(folder: Path) -> Path:
    """Two performances with their sound, and a line that prefers the first."""
    sound = 0.1 * np.random.default_rng(0).normal(size=SAMPLE_RATE).astype("float32")
    for name, lift in (("a", 2.0), ("b", -2.0)):
        write_motion(folder / f"{name}.json", clip(1, lift, 25)[0])
        wavfile.write(folder / f"{name}.wav", SAMPLE_RATE, sound)
    points = {"first": {"sync": 5.0}, "second": {"sync": 1.0}}
    labels = {"sync": Label.FIRST, "motion": Label.TIE}
    pair = PreferencePair("p", "a.json", "b.json", labels, "study", points=points)  # type: ignore[arg-type]
    write_pairs(folder / "pairs.jsonl", [pair])
    return folder / "pairs.jsonl"


def test_a_performance_with_its_sound_is_read_exactly(tmp_path: Path) -> None:
    path = write_performances(tmp_path)
    families, files = read_preference_groups([path], OfflineDataConfig())
    assert len(families) == 1
    assert {file.name for file in files} == {"pairs.jsonl", "a.json", "b.json"}
    motion, mel = families[0].clips[0]
    assert torch.allclose(motion, clip(1, 2.0, 25)[0], atol=1e-4)
    assert mel.shape == (100, 80)
    assert families[0].scores["sync"].tolist() == [1.0, 0.0]
    assert families[0].scores["motion"].tolist() == [0.5, 0.5]
    rated, _ = read_preference_groups([path], OfflineDataConfig(clips="rated"))
    assert [family.scores["sync"].tolist() for family in rated] == [[5.0], [1.0]]


def test_posttrain_learns_from_pairs_on_the_command_line_and_resumes(tmp_path: Path) -> None:
    pairs = write_performances(tmp_path)
    tiny_policy().save_pretrained(tmp_path / "start")
    command = [
        "posttrain", "--recipe", "flow-dpo", "--pairs", str(pairs), "--start", str(tmp_path / "start"), "--set",
        "frames=16", "groups=1", "--output",
    ]  # fmt: skip
    assert main([*command, str(tmp_path / "whole"), "--iterations", "2"]) == 0
    assert main([*command, str(tmp_path / "cut"), "--iterations", "1"]) == 0
    assert main([*command, str(tmp_path / "cut"), "--iterations", "2", "--resume"]) == 0
    whole, cut = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    )
    assert [record["loss/policy"] for record in whole] == [record["loss/policy"] for record in cut]
    assert whole[-1]["pairs"] > 0
    assert json.loads((tmp_path / "whole" / "recipe.json").read_text())["offline_data"]["clips"] == "pairs"
    write_motion(tmp_path / "a.json", clip(2, 2.0, 25)[0])
    assert main([*command, str(tmp_path / "cut"), "--iterations", "3", "--resume"]) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--recipe", "flow-grpo", "--pairs", "pairs.jsonl"], "does not go with --pairs: choose one of"),
        (["--recipe", "sync-dpo", "--pairs", "pairs.jsonl"], "does not go with --pairs"),
        (["--recipe", "sync-dpo"], "give a prepared corpus with --exemplars"),
        (["--recipe", "flow-dpo"], "--prompts"),
        (["--recipe", "flow-dpo", "--pairs", "pairs.jsonl", "--set", "frames=72"], "lower --set frames"),
        (["--recipe", "sync-dpo", "--set", "given.damages=blur"], "not known"),
    ],
)
def test_what_cannot_be_learned_from_is_said_in_a_sentence(
    options: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_performances(tmp_path)
    tiny_policy().save_pretrained(tmp_path / "start")
    monkeypatch.chdir(tmp_path)
    assert main(["posttrain", *options, "--start", "start", "--output", "out"]) == 2
    assert says in capsys.readouterr().err


def test_offline_runs_keep_the_reference_still() -> None:
    trainer = run(preferred())
    before = [weight.clone() for weight in weights(trainer, "ref")]
    trainer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer, "ref"), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before, weights(trainer, "live"), strict=True))
