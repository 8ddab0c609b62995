"""Claims about generators that make no faces: their data reaches rewards, and the examples learn what random rewards
do not teach."""

from __future__ import annotations

import copy
import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import camera_path, cell_images, falling_ball, four_conditions, image_edit
from safetensors.torch import load_file

import flowportrait as fp
from flowportrait.adapters.check import check_generator
from flowportrait.adapters.policy import DecodedSamples, GeneratorPolicy, GeneratorTask, Item, ItemBatch, ItemCondition
from flowportrait.adapters.pretraining import fit_generator
from flowportrait.adapters.small_flow import SmallFlow
from flowportrait.errors import BadInput
from flowportrait.rewards.interface import score_batch
from flowportrait.rewards.random import RandomReward
from flowportrait.rl.controlled_training import ControlledResult, train_with_control
from flowportrait.rl.plan import AllSteps
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.rollout import trajectory_of_final_samples


def numbers(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[float(text)] for text in texts])


def close(batch: fp.RewardBatch) -> torch.Tensor:
    """Minus the distance of the samples from the number that the prompt asks for."""
    return -(batch.data - numbers(list(batch.transcript))[:, None]).abs().mean((1, 2))


def generator() -> SmallFlow:
    return SmallFlow((5, 2), 1, numbers, width=16)


@pytest.fixture(scope="module")
def wide() -> SmallFlow:
    """A generator of numbers around zero, whatever the prompt asks for."""
    model, items = generator(), ITEMS * 16
    spread = 0.5 * torch.randn(len(items), 1, 1, generator=torch.Generator().manual_seed(0))
    fit_generator(model, items, spread.expand(-1, 5, 2), steps=150)
    return model


ITEMS = [Item(str(index), f"{index / 4 - 1:.2f}") for index in range(8)]
CONFIG = replace(find_recipe("nft"), iterations=12, groups=4, group_size=8, learning_rate=3e-3)


def batch_of(items: list[Item], data: torch.Tensor) -> fp.RewardBatch:
    """Samples with their prompts, as rewards see them."""
    task = GeneratorTask(items, frozenset({"data"}))
    return task.reward_batch(DecodedSamples(data=data), items)


def test_a_small_flow_passes_the_check_of_generators() -> None:
    found = check_generator(generator(), ITEMS[:2])
    assert [finding.message for finding in found if not finding.passed] == []


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (lambda x: x[:1], r"data of \(1, 5, 2\): it is \[2, T, \.\.\.\]"),
        (lambda x: x + torch.rand(()), "something else the second time"),
        (lambda x: x.mean(0, keepdim=True).expand_as(x) * len(x), "another picture alone than among others"),
    ],
)
def test_faulty_data_is_named_in_a_sentence(data: object, sentence: str) -> None:
    faulty = SmallFlow((5, 2), 1, numbers, data, width=16)  # type: ignore[arg-type]
    last = check_generator(faulty, ITEMS[:2])[-1]
    assert not last.passed
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(last.message)


def test_data_and_texts_reach_a_plain_function_without_a_face_being_looked_for() -> None:
    policy, data = GeneratorPolicy(generator()), torch.randn(8, 1, 10)
    task = GeneratorTask(ITEMS, frozenset({"motion"}))  # what a plain function needs, unless it says otherwise
    condition = ItemCondition(policy.encode(ITEMS))
    ids = torch.arange(8)
    batch = task.batch(policy, trajectory_of_final_samples(condition, data, ids, ids), ItemBatch(ITEMS))
    assert torch.equal(batch.data, data.reshape(8, 5, 2))
    assert list(batch.transcript) == [item.text for item in ITEMS]
    assert torch.equal(batch.select(torch.tensor([3])).data, batch.data[3:4])
    assert {"data", "transcript"} <= batch.has
    assert not batch.motion.any()


def test_random_scores_differ_between_samples_that_show_no_face() -> None:
    """With equal scores the control would not train at all, and could not drift."""
    still, mel = torch.zeros(6, 3, 30), torch.zeros(6, 12, 80)
    pictures = fp.RewardBatch(still, mel, latents=torch.randn(6, 1, 10))
    scores = score_batch(RandomReward(), pictures).value
    assert len(scores.unique()) == 6
    faces = fp.RewardBatch(torch.randn(6, 3, 30), mel, latents=torch.zeros(6, 1, 10))
    assert len(score_batch(RandomReward(), faces).value.unique()) == 6


def test_flow_matching_learns_samples_and_refuses_others() -> None:
    samples = numbers([item.text for item in ITEMS])[:, None].expand(-1, 5, 2)
    model = generator()
    first, last = (fit_generator(model, ITEMS, samples, steps, 64) for steps in (2, 200))
    assert last < first / 2
    with pytest.raises(BadInput, match=r"\(8, 4, 2\): \(8, 5, 2\) is one for each item"):
        fit_generator(model, ITEMS, samples[:, 1:])


def test_scores_on_prompts_are_those_of_the_trained_weights_and_repeatable(wide: SmallFlow, tmp_path: Path) -> None:
    trainer = fp.PostTrainer(
        copy.deepcopy(wide), [close], CONFIG, train_prompts=ITEMS[::2], output_dir=tmp_path / "run"
    )
    before = trainer.score_prompts(ITEMS[1::2])
    assert trainer.score_prompts(ITEMS[1::2]) == before
    assert set(trainer.score_prompts(ITEMS[1::2], [close, "random"])) == {"close", "random"}
    trainer.train()
    after = trainer.score_prompts(ITEMS[1::2], samples=16)
    assert after["close"] > before["close"] + 0.1
    # The averaged weights are scored, which are the ones that are delivered.
    delivered, checkpoint = generator(), tmp_path / "run" / "checkpoint" / "model.safetensors"
    weights = {k.removeprefix("generator."): v for k, v in load_file(checkpoint).items()}
    delivered.load_state_dict(weights)
    again = fp.PostTrainer(delivered, [close], CONFIG, train_prompts=ITEMS, output_dir=tmp_path / "none")
    assert again.score_prompts(ITEMS[1::2], samples=16)["close"] == pytest.approx(after["close"], abs=1e-6)


def test_a_run_beside_its_control_leaves_the_given_policy_alone(wide: SmallFlow, tmp_path: Path) -> None:
    model = wide
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    result = train_with_control(model, [close], CONFIG, ITEMS[::2], ITEMS[1::2], tmp_path)
    assert result.trained["close"] > max(result.before["close"], result.control["close"]) + 0.05
    assert result.table().splitlines()[2].startswith("| close | -")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    again = train_with_control(model, [close], CONFIG, ITEMS[::2], ITEMS[1::2], tmp_path, resume=True)
    assert again == result, "both runs had ended"


def test_held_out_prompts_of_data_that_is_no_video_are_refused_in_a_sentence(tmp_path: Path) -> None:
    config = replace(CONFIG, iterations=1, plan=AllSteps(2))
    trainer = fp.PostTrainer(generator(), [close], config, ITEMS[:4], ITEMS[4:], output_dir=tmp_path / "run")
    with pytest.raises(BadInput, match=r"SmallFlow makes data that is none: .* PostTrainer\.score_prompts"):
        trainer.train()


# --- What the rewards of the examples notice ---


def test_an_aimed_camera_shows_the_subject_and_a_turned_one_does_not() -> None:
    items, path = camera_path.make_scenes(20, 0)
    subject = camera_path.scenes([item.text for item in items])[:, None, :3]
    ray = subject - path[..., :3]
    aimed = path.clone()
    aimed[..., 3] = torch.atan2(ray[..., 1], ray[..., 0])
    aimed[..., 4] = torch.atan2(ray[..., 2], ray[..., :2].norm(dim=-1))
    assert camera_path.in_frame(batch_of(items, aimed)).min() == 1
    aimed[..., 3] += 1.5
    assert camera_path.in_frame(batch_of(items, aimed)).max() == 0
    inside = torch.cat(
        [camera_path.scenes([item.text for item in items])[:, None, 3:].expand(-1, 12, 2), path[..., 2:]], -1
    )
    assert camera_path.no_collision(batch_of(items, inside)).max() == 0
    shaken = path + 0.1 * torch.randn(path.shape, generator=torch.Generator().manual_seed(0))
    worse = camera_path.smooth(batch_of(items, shaken)) < camera_path.smooth(batch_of(items, path))
    assert worse.all()


def test_each_law_of_the_ball_notices_its_own_violation() -> None:
    seconds = falling_ball.STEP * torch.arange(falling_ball.FRAMES)

    def film(
        pull: float = falling_ball.GRAVITY, depth: float = 1.0, bounce: float = 0.7, lift: float = 0.0
    ) -> fp.RewardBatch:
        landing = (2 * 2.0 / pull) ** 0.5
        speed = bounce * pull * landing
        rise = (seconds - landing).clamp_min(0)
        y = torch.where(seconds < landing, 2 - pull * seconds**2 / 2, speed * rise - pull * rise**2 / 2) + lift
        columns = torch.stack([0 * y, y / 4, 0 * y + 10 * falling_ball.RADIUS / 4, 0 * y + 4 * depth], -1)
        # What is seen is as before when the stream of depth alone is wrong.
        columns[:, 1] /= depth
        return batch_of([Item("a", "2 0 0")], columns[None])

    laws = (falling_ball.gravity, falling_ball.energy, falling_ball.floor, falling_ball.agreement)
    assert all(float(law(film())) > -0.03 for law in laws)
    violations = {
        falling_ball.gravity: film(pull=5.0), falling_ball.energy: film(bounce=1.4),
        falling_ball.floor: film(lift=-0.5), falling_ball.agreement: film(depth=1.3),
    }  # fmt: skip
    for law, violated in violations.items():
        assert float(law(violated)) < -0.1, law.__name__
    assert float(falling_ball.gravity(film(depth=1.3))) > -0.03, "one law's violation is not another's"


def test_the_right_edit_has_full_marks_and_each_flaw_costs_its_own() -> None:
    items, _ = image_edit.make_edits(20, 0)
    edit = image_edit.edits([item.text for item in items])
    rewards = (image_edit.instruction, image_edit.preservation, image_edit.quality)

    def scores(pictures: torch.Tensor) -> list[float]:
        batch = batch_of(items, pictures[:, None])
        return [float(reward(batch).mean()) for reward in rewards]

    right, copied, tinted = scores(edit.target), scores(edit.source), scores(edit.target + 0.3 * (1 - edit.mask))
    noise = torch.randn(edit.target.shape, generator=torch.Generator().manual_seed(0))
    noisy = scores(edit.target + 0.3 * noise)
    assert right[:2] == pytest.approx([0, 0], abs=1e-5)
    assert (copied[0], copied[1]) == (pytest.approx(-1.1, abs=0.4), pytest.approx(0, abs=1e-5)), (
        "a copy follows nothing"
    )
    assert tinted[0] == pytest.approx(0, abs=1e-5)
    assert tinted[1] == pytest.approx(-0.3, abs=1e-4)
    assert noisy[2] < right[2] - 0.05


def test_discs_are_counted_and_measured() -> None:
    y, x = np.indices((12, 12))
    discs = [((y - cy) ** 2 + (x - cx) ** 2 <= 2) * 0.8 for cy, cx in ((3, 3), (8, 8))]
    bar = np.zeros((12, 12))
    bar[2, 1:8] = 1.0
    images = torch.from_numpy(np.stack([discs[0], discs[0] + discs[1], bar, 0 * bar])).float()
    number, area, brightness, ratio = cell_images.measure_cells(images)
    assert number.tolist() == [1, 2, 1, 0]
    assert area.tolist() == [9, 9, 7, 0]
    assert brightness.tolist() == pytest.approx([0.8, 0.8, 1.0, 0])
    assert ratio.tolist() == pytest.approx([1, 1, 1 / 7, 0], abs=1e-3)


def test_a_swapped_condition_is_that_of_the_next_prompt() -> None:
    items, tracks = four_conditions.make_prompts(16, 0)
    batch = batch_of(items, tracks)
    own, swapped = four_conditions.follows("image")(batch), four_conditions.follows("image", swapped=True)(batch)
    assert own.mean() > swapped.mean() + 0.5, "the films follow the image"
    own, swapped = four_conditions.follows("sound")(batch), four_conditions.follows("sound", swapped=True)(batch)
    assert own.mean() == pytest.approx(float(swapped.mean()), abs=0.1), "and ignore the sound"
    following = four_conditions.read_conditions([items[1].text])
    assert swapped[0] == -four_conditions.errors(tracks[:1], following)["sound"]


# --- What the examples learn ---

GAINS = {
    "camera_path": {"in_frame": 0.08},
    "falling_ball": {"gravity": 0.03, "agreement": 0.04},
    "image_edit": {"instruction": 0.15, "preservation": 0.04, "quality": 0.02},
    "four_conditions": {"text": 0.03, "image": 0.04, "pose": 0.2},
    "cell_images": {"number": 0.2, "size": 0.1, "intensity": 0.1, "shape": 0.1},
}
"""Example → reward → how much training must gain at least, both over the start and over random rewards."""


@pytest.mark.slow
@pytest.mark.parametrize("name", GAINS)
def test_an_example_gains_on_held_out_prompts_what_random_rewards_do_not_give(name: str, tmp_path: Path) -> None:
    example = importlib.import_module(f"examples.{name}")
    result: ControlledResult = example.main(tmp_path)
    for reward, gain in GAINS[name].items():
        assert result.trained[reward] > result.before[reward] + gain, result.table()
        assert result.trained[reward] > result.control[reward] + gain, result.table()
        assert result.control[reward] < result.before[reward] + gain, result.table()


def test_examples_stay_short() -> None:
    for name in GAINS:
        text = Path(str(importlib.import_module(f"examples.{name}").__file__)).read_text(encoding="utf-8")
        assert len(text.splitlines()) < 100
        assert "an illustration of the kind, not a reproduction." in text.splitlines()[0]
