"""Claims about rewards on motion and on the policy itself: eyes, head, silent lips, self-confidence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowportrait.rendering.motion_basis import BLINK, GAZE, HEAD, LOWER_FACE
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import score_batch
from flowportrait.rewards.motion import (
    BLINKS_PER_SECOND,
    EyesReward,
    HeadReward,
    SilentLipReward,
    count_lid_closures,
    find_silent_frames,
    inner_lip_gap,
    poisson_surprise,
)
from flowportrait.rewards.relative import SelfConfidenceReward
from tests.rewards.test_reward import lively


def batch(motion: torch.Tensor, mel: torch.Tensor | None = None) -> RewardBatch:
    return RewardBatch(motion, torch.zeros(len(motion), 4 * motion.shape[1], 80) if mel is None else mel)


def blinking(times: int, frames: int = 100) -> torch.Tensor:
    lids = torch.zeros(frames)
    for place in torch.linspace(8, frames - 12, times).int().tolist():
        lids[place : place + 4] = torch.tensor([2.0, 4.0, 4.0, 2.0])
    return lids


@pytest.mark.parametrize("times", [0, 1, 3, 6])
def test_blinks_are_counted_and_half_closed_lids_are_none(times: int) -> None:
    assert count_lid_closures(blinking(times).numpy()) == times
    assert count_lid_closures((0.2 * blinking(times)).numpy()) == 0


def test_the_usual_number_of_blinks_surprises_least() -> None:
    counts = torch.arange(12)
    found = poisson_surprise(counts, BLINKS_PER_SECOND * 4)
    assert found.argmin() == 2
    assert (found >= 0).all()
    assert (found.diff()[:2] < 0).all()
    assert (found.diff()[2:] > 0).all()


def test_a_stare_and_a_flutter_are_worse_than_living_eyes() -> None:
    alive = lively(112)
    alive[..., BLINK] = blinking(3, 112)[:, None]
    stare, flutter = alive.clone(), alive.clone()
    stare[..., BLINK.start : GAZE.stop] = 0
    flutter[..., BLINK] = blinking(16, 112)[:, None]
    own, dead, nervous = EyesReward.load()(batch(torch.cat([alive, stare, flutter]))).value
    assert own > dead + 0.3
    assert own > nervous + 0.3


def test_a_stiff_and_a_lolling_head_are_worse_than_a_living_one_and_lips_do_not_matter() -> None:
    alive = lively(112)
    stiff, lolling, mute = alive.clone(), alive.clone(), alive.clone()
    stiff[..., HEAD] *= 0.05
    lolling[..., HEAD] *= 6
    mute[..., LOWER_FACE] = 0
    own, dead, drunk, silent = HeadReward.load()(batch(torch.cat([alive, stiff, lolling, mute]))).value
    assert own > max(dead, drunk) + 0.3
    assert own == silent


def spoken(quiet: slice, frames: int = 60) -> torch.Tensor:
    """Log-mel of noise that stops for a while."""
    mel = 1.2 + 0.2 * torch.randn(1, 4 * frames, 80, generator=torch.Generator().manual_seed(0))
    mel[:, 4 * quiet.start : 4 * quiet.stop] = -1.0
    return mel


def test_silence_is_where_nobody_speaks_away_from_its_edges() -> None:
    found = find_silent_frames(spoken(slice(20, 40)))[0].nonzero()[:, 0].tolist()
    assert found == list(range(21, 39))
    assert not find_silent_frames(spoken(slice(20, 22))).any()


def test_resting_lips_are_shut_and_jaws_open_them() -> None:
    motion = torch.zeros(1, 60, 30)
    assert inner_lip_gap(motion).max() == 0
    opened = torch.eye(16)[:, None].expand(-1, 60, -1)
    gaps = inner_lip_gap(torch.cat([opened, torch.zeros(16, 60, 14)], -1)).mean(1)
    assert gaps.max() > 0.01


def test_lips_open_in_silence_cost_and_lips_open_in_speech_do_not() -> None:
    gaps = inner_lip_gap(torch.cat([torch.eye(16)[:, None], torch.zeros(16, 1, 14)], -1))[:, 0]
    mumbling, speaking = torch.zeros(1, 60, 30), torch.zeros(1, 60, 30)
    mumbling[:, 20:40, gaps.argmax()] = 2.0
    speaking[:, :18, gaps.argmax()] = 2.0
    mel = spoken(slice(20, 40)).expand(2, -1, -1)
    found = SilentLipReward.load()(batch(torch.cat([mumbling, speaking]), mel))
    assert found.value[0] < -0.02
    assert found.value[1] == 0
    assert found.dense is not None
    assert (found.dense[0, :20] == 0).all()
    assert (found.dense[0, 25:35] < 0).all()


def test_speech_throughout_has_no_score_for_silence_and_says_why() -> None:
    found = score_batch(SilentLipReward.load(), batch(lively(60), spoken(slice(0, 0))))
    assert not found.valid.any()
    assert found.failures[0] is not None
    assert found.failures[0].kind == "no_sound"


class Gaussian:
    """The exact velocity field of standard normal data, chunk by chunk."""

    def contexts(self, condition: Any, latents: torch.Tensor) -> torch.Tensor:
        return latents.new_zeros(*latents.shape[:2], 1)

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        # E[ε − x₀ | x_σ] for x₀, ε ~ N(0, 1)
        return x * (2 * sigma - 1) / ((1 - sigma) ** 2 + sigma**2)


def confident(latents: torch.Tensor, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    frames = 4 * latents.shape[1]
    known = RewardBatch(torch.zeros(len(latents), frames, 30), torch.zeros(len(latents), 4 * frames, 80),
                        policy=Gaussian(), latents=latents)  # fmt: skip
    found = score_batch(SelfConfidenceReward(**settings), known)
    assert found.dense is not None
    return found.value, found.dense


def test_a_policy_is_surer_of_what_it_would_do_than_of_an_outlier() -> None:
    usual, far = torch.zeros(1, 3, 40), 3 * torch.ones(1, 3, 40)
    value, _ = confident(torch.cat([usual, far]))
    assert value[0] > value[1] + 0.5


def test_confidence_has_its_closed_form() -> None:
    # Antithetic noises cancel the cross term: error = k²·mean ε² + c²·mean x₀², with ε̂ − ε = k ε + c x₀.
    level = 0.35
    slope = (2 * level - 1) / ((1 - level) ** 2 + level**2)
    gain = 1 + (1 - level) * slope
    k, c = gain * level - 1, gain * (1 - level)
    value, _ = confident(2 * torch.ones(1, 2, 4000), levels=(level,), pairs=8)
    assert float(value) == pytest.approx(-float(torch.tensor(k**2 + 4 * c**2).log()), abs=0.02)


def test_confidence_pays_the_chunk_it_is_about() -> None:
    latents = torch.zeros(1, 3, 40)
    latents[:, 1] = 3.0
    _, dense = confident(latents)
    assert dense.shape == (1, 12)
    assert (dense[0, 4:8] < dense[0, :4] - 0.5).all()
