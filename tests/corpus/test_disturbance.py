"""Claims about post-training in noise: the policy hears it, rewards do not, and it is as loud as asked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowportrait.adapters.loading import missing_ability
from flowportrait.config import override, to_dict
from flowportrait.errors import BadInput
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.config import Recipe
from flowportrait.rl.manifest import changed_settings
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.task import Disturbance, SpeechItem, TalkingTask, draw_prompts, speech_mel
from flowportrait.rl.trainer import Trainer
from tests.models.test_generator import TINY
from tests.rl.test_posttrain import RECIPE, tiny_policy


@dataclass(frozen=True)
class Listener:
    """Keeps the sound that it is shown."""

    shown: list[torch.Tensor] = field(default_factory=list)
    name: str = "listener"
    needs: frozenset[str] = frozenset({"motion", "mel"})

    def __call__(self, batch: RewardBatch) -> Score:
        self.shown.append(batch.mel)
        return all_valid(batch.motion[..., 0].mean(1))


def columns(seed: int) -> torch.Tensor:
    return torch.randn(80, 80, generator=torch.Generator().manual_seed(seed))


def test_the_policy_hears_the_disturbance_and_rewards_the_clean_track() -> None:
    items = [
        SpeechItem(columns(number), 0, disturbed_mels=(columns(100 + number), columns(200 + number)))
        for number in range(5)
    ]
    task = TalkingTask(items, 16, None, TINY.chunk)
    recipe, listener = replace(RECIPE, groups=5, group_size=2, rollout_chunks=1), Listener()
    run = Trainer(tiny_policy(), task, recipe, CompositeReward((listener,), {"listener": 1.0}))
    prompts = task.draw(5, recipe.seed, 0)
    heard = prompts.policy_mel
    assert heard is not None
    assert not torch.equal(heard, prompts.mel)
    known = [(item.mel, *item.disturbed_mels) for item in items]
    for clean, disturbed in zip(prompts.mel, heard, strict=True):
        places = [
            [start for start in range(0, 17, 4) if any(torch.equal(mel[start : start + 64], part) for mel in choices)]
            for choices in known
            for part in (clean, disturbed)
        ]
        assert any(places[2 * item] and places[2 * item] == places[2 * item + 1] for item in range(5))
    metrics = run.step()
    assert metrics["noise_gap"] < 1e-3
    assert torch.equal(listener.shown[0], prompts.mel.repeat_interleave(2, 0))
    condition = run.policy.condition(heard)
    for mine, asked in zip(task.condition(run.policy, prompts), condition, strict=True):
        assert mine is asked or torch.equal(mine, asked)


def test_prompts_are_drawn_as_before_where_nothing_is_disturbed() -> None:
    drawn = draw_prompts([SpeechItem(columns(number), number) for number in range(5)], 3, 16, 1, 2)
    assert drawn.policy_mel is None
    generator = torch.Generator().manual_seed(0)
    assert len(draw_prompts([SpeechItem(torch.rand(80, 80, generator=generator), 0)], 2, 16, 0, 0).mel) == 2


def tone(seconds: float = 2.0) -> np.ndarray:
    time = np.arange(int(16000 * seconds)) / 16000
    return (0.1 * np.sin(2 * np.pi * 220 * time) * (1 + np.sin(2 * np.pi * 3 * time))).astype(np.float32)


@given(decibels=st.floats(-5, 20), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_noise_is_as_far_below_the_speech_as_asked(decibels: float, seed: int) -> None:
    speaker, crowd = tone(), [tone()[::-1].copy()]
    config = Disturbance(room=0.0, lowest=decibels, highest=decibels)
    added = config.disturb(speaker, crowd, np.random.default_rng(seed)) - speaker
    assert 10 * np.log10(np.square(speaker).mean() / np.square(added).mean()) == pytest.approx(decibels, abs=0.1)


def test_a_room_keeps_the_direct_sound_and_adds_what_follows_it() -> None:
    click = np.zeros(16000, np.float32)
    click[4000] = 1.0
    heard = Disturbance(room=1.0).disturb(click, [], np.random.default_rng(0))
    assert heard[4000] == pytest.approx(1.0, abs=1e-4)
    assert np.abs(heard[:4000]).max() < 1e-4
    assert 0.01 <= np.square(heard[4001:]).sum() <= 1.0


def test_what_is_heard_is_a_function_of_the_seed_as_long_as_the_speech_and_denoised_if_asked() -> None:
    waves = {Path("a.wav"): tone(), Path("b.wav"): tone(1.0)}
    bare = Disturbance(variants=2, room=0.0, lowest=-5.0, highest=0.0, enhanced=False)
    once, again, other = (dict(bare.disturbed_mels(waves, 40, seed)) for seed in (0, 0, 1))
    denoised = dict(replace(bare, enhanced=True).disturbed_mels(waves, 40, 0))
    for path, wave in waves.items():
        clean = speech_mel(wave, 40)
        assert [mel.shape for mel in once[path]] == [clean.shape] * 2
        for mine, same, else_, clearer in zip(once[path], again[path], other[path], denoised[path], strict=True):
            assert torch.equal(mine, same)
            assert not torch.equal(mine, else_)
            assert not torch.equal(mine, clean)
            assert float((clearer - mine).mean()) <= 0
    assert any(not torch.equal(a, b) for path in waves for a, b in zip(once[path], denoised[path], strict=True))


def test_a_run_that_knew_of_no_disturbance_goes_on_without_a_word_and_one_that_begins_to_is_told() -> None:
    plain = to_dict(find_recipe("nft"))
    disturbed = to_dict(override(find_recipe("nft"), ["disturbance.variants=2"]))
    older = {key: value for key, value in plain.items() if key != "disturbance"}
    assert changed_settings(older, plain, Path("run")) == []
    assert "disturbance.variants was None, is 2" in changed_settings(plain, disturbed, Path("run"))


def test_what_cannot_be_disturbed_says_so() -> None:
    recipe: Recipe = override(find_recipe("nft"), ["disturbance.enhanced=false"])
    assert recipe.disturbance == Disturbance(enhanced=False)
    assert missing_ability(recipe)
    for name in ("exemplar-awm", "sync-dpo"):
        with pytest.raises(BadInput, match="of the speech of prompts"):
            override(find_recipe(name), ["disturbance.variants=2"])
    with pytest.raises(BadInput, match=r"disturbance\.highest=1\.0 no less than"):
        Disturbance(lowest=5.0, highest=1.0)
