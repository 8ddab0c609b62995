"""Claims about rewards: what each pays for, and what it does not."""

from __future__ import annotations

import pytest
import torch

from flowportrait.config import override
from flowportrait.errors import BadInput
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.consistency import PerceptualReward, TemporalReward
from flowportrait.rewards.face import frame_pair_indices, structural_similarity
from flowportrait.rewards.interface import RealStatistic, Score, all_valid
from flowportrait.rewards.motion import (
    MOTION_GROUPS,
    ExpressivenessReward,
    RealMotionStatistics,
    SmoothnessReward,
    log_amplitude,
    log_flutter,
)
from flowportrait.rewards.registry import CompositeReward, RewardWeights, register_reward
from flowportrait.rewards.sync import LipSyncReward, sync_margins
from flowportrait.rl.credit import CreditConfig, assign_credit

REAL = RealMotionStatistics.load()


def lively(frames: int = 56, seed: int = 0) -> torch.Tensor:
    """Motion ``[1, T, 30]`` whose every group has real speakers' mean amplitude, below 4 Hz."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(frames) / 25
    waves = [
        torch.sin(2 * torch.pi * (hz * time[:, None] + torch.rand(30, generator=generator))) for hz in (1.3, 2.2, 3.1)
    ]
    motion = sum(waves) / torch.stack(waves).sum(0).std(0)
    for (_, part), amplitude in zip(MOTION_GROUPS.items(), REAL.amplitude_mean, strict=True):
        motion[:, part] *= torch.tensor(amplitude).exp()
    return motion[None]


def batch(motion: torch.Tensor) -> RewardBatch:
    return RewardBatch(motion, torch.zeros(len(motion), 4 * motion.shape[1], 80))


@pytest.mark.parametrize("factor", [0.0, 0.1, 6.0])
def test_dead_and_grimacing_faces_are_less_expressive(factor: float) -> None:
    motion = torch.cat([lively(), factor * lively()])
    real, other = ExpressivenessReward(REAL)(batch(motion)).value
    assert real > other + 0.3


def test_a_tremor_costs_smoothness_and_stillness_does_not_earn_it() -> None:
    motion = lively()
    tremor = motion + 0.4 * torch.tensor([1.0, -1.0]).repeat(28)[None, :, None]
    calm, shaking, still = SmoothnessReward(REAL)(batch(torch.cat([motion, tremor, 0.02 * motion]))).value
    assert calm > shaking
    assert calm > still


def test_flutter_hears_a_signed_4_hz_motion_as_4_hz() -> None:
    time = torch.arange(100) / 25
    slow = torch.sin(2 * torch.pi * 4 * time)[None, :, None].expand(-1, -1, 30)
    fast = torch.sin(2 * torch.pi * 8 * time)[None, :, None].expand(-1, -1, 30)
    assert (log_flutter(slow) < -3).all()
    assert (log_flutter(fast) > -0.1).all()


def test_a_margin_is_own_fit_less_the_neighbourhoods() -> None:
    similarity = 0.2 * torch.ones(1, 30, 30) + 0.5 * torch.eye(30)
    assert torch.allclose(sync_margins(similarity), torch.full((1, 30), 0.5))
    assert torch.allclose(sync_margins(torch.full((1, 30, 30), 0.7)), torch.zeros(1, 30), atol=1e-6)


def test_lip_sync_of_clips_shorter_than_its_window_is_one_sentence() -> None:
    short = RewardBatch(torch.zeros(2, 8, 30), torch.zeros(2, 32, 80))
    with pytest.raises(BadInput, match="'sync' needs clips of at least 9 frames, not 8: raise frames to 12"):
        LipSyncReward.load()(short)
    assert LipSyncReward.load()(RewardBatch(torch.zeros(2, 12, 30), torch.zeros(2, 48, 80))).valid.all()


@pytest.mark.parametrize("frames", [28, 29, 72])
def test_lip_sync_credits_every_frame_with_a_window_that_it_is_part_of(frames: int) -> None:
    draw = torch.Generator().manual_seed(0)
    seen = RewardBatch(torch.randn(3, frames, 30, generator=draw), torch.randn(3, 4 * frames, 80, generator=draw))
    reward = LipSyncReward.load()
    score = reward(seen)
    with torch.no_grad():
        margin = sync_margins(reward.expert.embed_face(seen.motion) @ reward.expert.embed_audio(seen.mel).mT)
    width = reward.expert.WINDOW
    assert margin.shape[1] == frames - width + 1
    for frame in range(frames):
        window = min(max(frame - width // 2, 0), frames - width)
        assert window <= frame < window + width
        assert torch.equal(score.dense[:, frame], margin[:, window])  # type: ignore[index]
    assert torch.allclose(score.value, margin.mean(1))


def test_every_chunk_gets_its_full_share_of_the_sync_weight() -> None:
    """28 frames are seven chunks; each is credited 0.3 of the clip's deviation and 0.7 of its own, of unit spread."""
    draw = torch.Generator().manual_seed(0)
    score = LipSyncReward.load()(
        RewardBatch(torch.randn(16, 28, 30, generator=draw), torch.randn(16, 112, 80, generator=draw))
    )
    group, weights = torch.zeros(16, dtype=torch.long), {"sync": 2.0}
    own = assign_credit({"sync": score}, group, 7, weights, CreditConfig(limit=99.0)).advantage
    clip = assign_credit({"sync": score}, group, 7, weights, CreditConfig(limit=99.0, dense=0.0)).advantage
    assert torch.allclose((own - 0.3 * clip).std(0), torch.full((7,), 0.7 * 2.0), rtol=1e-4)


def test_lip_sync_does_not_care_about_head_or_resting_mouth() -> None:
    reward, mel = LipSyncReward.load(), torch.randn(1, 4 * 40, 80)
    motion = lively(40)
    moved = motion.clone()
    moved[..., 24:] += torch.randn(6)
    moved[..., :16] += torch.randn(16)
    plain, other = reward(RewardBatch(motion, mel)), reward(RewardBatch(moved, mel))
    assert torch.allclose(plain.value, other.value, atol=1e-5)
    assert plain.dense is not None
    assert plain.dense.shape == (1, 40)


def test_similarity_is_one_for_equal_pictures_and_less_for_noise() -> None:
    picture = torch.rand(2, 3, 32, 32)
    assert torch.allclose(structural_similarity(picture, picture), torch.ones(2), atol=1e-5)
    assert (structural_similarity(picture, torch.rand(2, 3, 32, 32)) < 0.3).all()


class Panel:
    """Judges everything alike."""

    name = "panel of one"
    needs: frozenset[str] = frozenset({"motion"})

    def __call__(self, batch: RewardBatch) -> Score:
        return all_valid(torch.ones(len(batch)))


def drawn(shake: float) -> RewardBatch:
    """A textured picture that moves by ``shake`` between frames, plus pixel noise growing with it."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.nn.functional.interpolate(
        torch.rand(1, 3, 16, 16, generator=generator), size=(64, 64), mode="bilinear"
    )

    def draw(motion: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        noise = torch.randn(len(indices), 3, 64, 64, generator=generator)
        return (picture + shake * noise).clamp(0, 1)[None]

    return RewardBatch(torch.zeros(1, 28, 30), torch.zeros(1, 112, 80), draw)


def test_flickering_pixels_are_temporally_worse() -> None:
    reward = TemporalReward({"temporal/dis/drawn": RealStatistic(-3.0, 1.0)})
    assert reward(drawn(0.0)).value > reward(drawn(0.05)).value > reward(drawn(0.2)).value


def test_colour_that_pumps_at_equal_brightness_is_seen() -> None:
    steady = drawn(0.0).frames((0,)).expand(-1, 28, -1, -1, -1)
    swing = 0.1 * torch.sin(torch.arange(28) / 4)[:, None, None, None] * torch.tensor([1.0, -0.4, -0.6])[:, None, None]
    reward = TemporalReward({"temporal/dis/drawn": RealStatistic(-3.0, 1.0)})
    calm, pumping = (
        RewardBatch(
            torch.zeros(1, 28, 30), torch.zeros(1, 112, 80), lambda _, indices, clip=clip: clip[:, list(indices)]
        )
        for clip in (steady, (steady + swing).clamp(0, 1))
    )
    assert reward(calm).value > reward(pumping).value + 0.1


def test_neither_a_frozen_nor_a_noisy_picture_is_perceptually_best() -> None:
    frozen, noisy = (sum(PerceptualReward().measure(drawn(shake)).values()) / 2 for shake in (0.0, 0.3))
    middle = RealStatistic(float(frozen + noisy) / 2, 1.0)
    reward = PerceptualReward({"perceptual/ssim/frames/drawn": middle, "perceptual/ssim/median/drawn": middle})
    between = next(
        shake
        for shake in torch.linspace(0.01, 0.3, 30)
        if sum(PerceptualReward().measure(drawn(float(shake))).values()) / 2 < middle.mean
    )
    best = reward(drawn(float(between))).value
    assert best > reward(drawn(0.0)).value
    assert best > reward(drawn(0.3)).value


def test_pairs_are_neighbours_inside_the_clip() -> None:
    for frames in (8, 28, 72):
        indices = frame_pair_indices(frames)
        assert all(b - a == 1 for a, b in zip(indices[::2], indices[1::2], strict=True))
        assert 0 <= min(indices) < max(indices) < frames


def test_the_default_weights_are_half_judge_and_sum_to_one() -> None:
    weights = CompositeReward.default().weights
    assert sum(weights.values()) == pytest.approx(1.0)
    assert weights["sync"] + weights["expressiveness"] + weights["smoothness"] == pytest.approx(0.5)
    assert (weights["perceptual"], weights["temporal"]) == (0.3, 0.2)


def test_the_judges_weight_goes_to_whoever_judges() -> None:
    register_reward("panel of one", lambda _: Panel())
    weights = CompositeReward.default(RewardWeights(judge_by="panel of one", identity=0.1)).weights
    assert weights == {"panel of one": 0.5, "perceptual": 0.3, "temporal": 0.2, "identity": 0.1}


def test_rewards_are_chosen_by_name_and_unknown_names_list_the_choices() -> None:
    assert CompositeReward.of({"sync": 0.6, "head": 0.4, "eyes": 0.0}).weights == {"sync": 0.6, "head": 0.4}
    with pytest.raises(BadInput, match="No reward named 'sink': choose from sync, silent_lip"):
        CompositeReward.of({"sink": 1.0})
    with pytest.raises(BadInput, match="No reward named 'mine'"):
        override(RewardWeights(), ["other.mine=0.3"])
    with pytest.raises(BadInput, match="identity=-1"):
        override(RewardWeights(), ["identity=-1"])
    assert override(RewardWeights(), ["identity=0.2", "options.flow=raft"]).options.flow == "raft"
    with pytest.raises(BadInput, match="Unknown key 'identiti': did you mean 'identity'"):
        override(RewardWeights(), ["identiti=0.2"])


def test_a_reward_without_weight_is_not_even_computed() -> None:
    composite = CompositeReward.default(RewardWeights(perceptual=0.0, temporal=0.0))
    scores = composite(batch(lively()))
    assert set(scores) == {"sync", "expressiveness", "smoothness"}
    with pytest.raises(BadInput, match="cannot draw"):
        CompositeReward.default()(batch(lively()))


def test_a_clip_shorter_than_the_window_of_the_statistics_is_one_window() -> None:
    real, motion = RealMotionStatistics.load(), torch.randn(2, 20, 30)
    assert torch.equal(real.mean_over_windows(log_amplitude, motion), log_amplitude(motion))
