"""Claims about the latent reward: it looks back only, each score hears what it may, and noise makes it less sure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowportrait.corruption import MOTION_CORRUPTIONS
from flowportrait.data.motion_dataset import MotionClip
from flowportrait.errors import BadInput
from flowportrait.models.arflow import ARFlow
from flowportrait.models.backbone import GeneratorConfig
from flowportrait.preferences.clips import TIE_MARGIN, thurstone_log_probs
from flowportrait.preferences.dataset import DIMENSIONS, Label
from flowportrait.preferences.latent_reward import (
    HISTORY_CHUNKS,
    LatentReward,
    LatentRewardTrainingConfig,
    expert_slope,
    slope_loss,
    train_latent_reward,
)
from flowportrait.preferences.synthetic_pairs import (
    DamagedPairSampler,
    LatentPairSampler,
    add_audio_conditions,
    generate_clips,
)
from flowportrait.rewards.sync import MotionSyncExpert
from flowportrait.training.optimize import minimize

SYNC = DIMENSIONS.index("sync")
CHUNKS = HISTORY_CHUNKS + 3


@pytest.fixture(scope="module")
def generator() -> ARFlow:
    torch.manual_seed(0)
    return ARFlow(
        GeneratorConfig(hidden=16, layers=1, heads=2, front_end="mel", audio_width=8, head_width=16, head_depth=1)
    ).eval()


@pytest.fixture(scope="module")
def reward(generator: ARFlow) -> LatentReward:
    torch.manual_seed(1)
    model = LatentReward.fresh(generator, width=16, depth=1).eval().requires_grad_(False)
    # Fresh, the heads ignore what they are told (their modulation starts at zero).
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def inputs(generator: ARFlow, chunks: int = CHUNKS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(2)
    known = generator.condition(torch.randn(2, 16 * chunks, 80, generator=drawn))
    return torch.randn(2, chunks, 120, generator=drawn), known.audio.detach(), torch.randn(2, 30, generator=drawn)


def test_only_sync_hears(generator: ARFlow, reward: LatentReward) -> None:
    x, heard, start = inputs(generator)
    plain, other = (reward(x, 0.3, sound, start).mean for sound in (heard, heard.roll(1, 0)))
    changed = (plain != other).any(0).any(0).tolist()
    assert changed == [dimension == "sync" for dimension in DIMENSIONS]


def test_a_score_knows_the_present_the_past_it_reaches_and_nothing_later(
    generator: ARFlow, reward: LatentReward
) -> None:
    x, heard, start = inputs(generator)
    x.requires_grad_()
    now = CHUNKS - 2
    for dimension in range(3):
        own = reward(x, 0.4, heard, start).mean[0, now, dimension]
        slope = torch.autograd.grad(own, x)[0][0].abs().sum(-1)
        assert slope[now] > 0
        assert slope[now + 1 :].sum() == 0
    known = x.detach().roll(1, 0)
    slope = torch.autograd.grad(reward(x, 0.4, heard, start, known).mean[0, now].sum(), x)[0]
    assert slope[0, now].abs().sum() > 0
    assert slope.abs().sum() == slope[0, now].abs().sum()


def test_the_last_chunks_of_a_live_session_are_enough(generator: ARFlow, reward: LatentReward) -> None:
    x, heard, start = inputs(generator)
    past, first = x.flip(0), CHUNKS - HISTORY_CHUNKS - 1
    whole = reward(x, 0.4, heard, start, past).mean[:, -1]
    frame = generator.to_motion(past[:, :first], start)[:, -1]
    live = reward(x[:, first:], 0.4, heard[:, first:], frame, past[:, first:]).mean[:, -1]
    assert torch.allclose(whole, live, atol=1e-4)
    # The clean past may as well stand in x itself, at σ = 0.
    mixed = torch.cat([past[:, :-1], x[:, -1:]], 1)
    sigma = torch.tensor([0.0] * (CHUNKS - 1) + [0.4]).expand(2, -1)
    assert torch.allclose(reward(mixed, sigma, heard, start).mean[:, -1], whole, atol=1e-4)


@given(st.floats(-6, 6), st.floats(0.3, 9))
@settings(max_examples=40, deadline=None)
def test_three_answers_sum_to_one_and_swap_with_the_sides(gap: float, variance: float) -> None:
    d, v = torch.tensor(gap), torch.tensor(variance)
    chances, swapped = thurstone_log_probs(d, v, TIE_MARGIN).exp(), thurstone_log_probs(-d, v, TIE_MARGIN).exp()
    assert chances.sum().item() == pytest.approx(1, abs=1e-4)
    assert torch.allclose(chances, swapped.flip(-1), atol=1e-6)


def test_equal_clips_tie_in_two_of_three_cases_and_doubt_makes_a_gap_say_less() -> None:
    one = torch.tensor(1.0)
    assert thurstone_log_probs(0 * one, one, TIE_MARGIN).exp()[1].item() == pytest.approx(2 / 3, abs=1e-3)
    sure, unsure = (thurstone_log_probs(2 * one, v * one, TIE_MARGIN).exp() for v in (1, 5))
    assert sure[0] > unsure[0]
    assert sure[2] < unsure[2]


def test_noise_makes_it_less_sure_and_the_yardstick_changes_no_chance(generator: ARFlow) -> None:
    model = LatentReward.fresh(generator, width=16, depth=1).eval()
    x, heard, start = inputs(generator)
    stds = [model(x, sigma, heard, start).log_std[0, 0] for sigma in (0.0, 0.5, 1.0)]
    assert (torch.stack(stds).diff(dim=0) > 0).all()
    raw = model(x, 0.2, heard, start).clip()
    before = model.log_probs(*(type(raw)(*(part[row] for part in raw)) for row in (0, 1)))
    model.standardise(5 + 3 * torch.randn(100, 3))
    scaled = model(x, 0.2, heard, start).clip()
    after = model.log_probs(*(type(raw)(*(part[row] for part in scaled)) for row in (0, 1)))
    assert torch.allclose(before, after, atol=1e-4)
    assert not torch.allclose(raw.mean, scaled.mean)


def test_what_is_saved_is_read_and_what_is_not_there_is_one_sentence(
    generator: ARFlow, reward: LatentReward, tmp_path: Path
) -> None:
    reward.save_pretrained(tmp_path / "latent")
    again = LatentReward.from_pretrained(tmp_path / "latent")
    x, heard, start = inputs(generator)
    assert torch.allclose(again(x, 0.2, heard, start).mean, reward(x, 0.2, heard, start).mean, atol=0.02)
    assert '"audio_width"' in (tmp_path / "latent" / "config.json").read_text()  # version 0.1 wrote "heard"
    with pytest.raises(BadInput, match="No latent reward in"):
        LatentReward.from_pretrained(tmp_path)
    (tmp_path / "latent" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(BadInput, match="does not fit"):
        LatentReward.from_pretrained(tmp_path / "latent")


def test_a_grafted_dimension_is_the_other_rewards_and_the_rest_stays(generator: ARFlow, reward: LatentReward) -> None:
    torch.manual_seed(5)
    mixed = LatentReward.fresh(generator, width=16, depth=1).eval().requires_grad_(False)
    x, heard, start = inputs(generator)
    before, wanted = mixed(x, 0.3, heard, start), reward(x, 0.3, heard, start)
    mixed.copy_dimension(reward, "sync")
    after = mixed(x, 0.3, heard, start)
    for found, old, new in zip(after, before, wanted, strict=True):
        assert torch.equal(found[..., SYNC], new[..., SYNC])
        assert torch.equal(found[..., SYNC + 1 :], old[..., SYNC + 1 :])
    with pytest.raises(BadInput, match="Cannot take over beauty"):
        mixed.copy_dimension(reward, "beauty")


@pytest.fixture(scope="module")
def clips() -> list[MotionClip]:
    torch.manual_seed(3)
    made = []
    for name in "abcdef":
        motion = torch.nn.functional.avg_pool1d(torch.randn(1, 30, 44), 5, 1)[0].T * 3
        mel = torch.randn(160, 80) + motion[:, :1].repeat_interleave(4, 0)
        made.append(MotionClip(name, name, motion, mel, torch.zeros(19)))
    return made


def test_clips_are_heard_as_the_generator_hears_them_and_pairs_keep_their_motion(
    generator: ARFlow, clips: list[MotionClip]
) -> None:
    heard = add_audio_conditions(generator, clips, voices=2)
    own = generator.condition(clips[0].mel[None], generator.rest_style[None]).audio[0]
    assert torch.allclose(heard[0].condition(0, 40, 4).float(), own, atol=0.01)
    made = generate_clips(generator, heard)
    assert [clip.clip.name for clip in made] == [clip.name for clip in clips]
    assert torch.equal(made[0].clip.motion[0], clips[0].motion[0])
    pairs = LatentPairSampler(heard, generator.space, {"jitter": MOTION_CORRUPTIONS["jitter"]}, 0, vary=False).draw(8)
    same = DamagedPairSampler(clips, {"jitter": MOTION_CORRUPTIONS["jitter"]}, 0, frames=21).draw(8)
    first, second = (pairs.first, pairs.start_first, same.first), (pairs.second, pairs.start_second, same.second)
    for latents, start, motion in (first, second):
        assert torch.allclose(generator.to_motion(latents, start), motion[:, 1:], atol=1e-4)
    assert pairs.audio.shape == (8, 5, 4 * (8 + 16))


def test_the_sync_score_learns_to_rise_where_the_expert_rises(generator: ARFlow, clips: list[MotionClip]) -> None:
    torch.manual_seed(4)
    expert, model = MotionSyncExpert.load(), LatentReward.fresh(generator, width=32, depth=1)
    pairs = LatentPairSampler(
        add_audio_conditions(generator, clips), generator.space, MOTION_CORRUPTIONS, 0, vary=False
    ).draw(9)
    clean, start = pairs.intact()
    slope = expert_slope(model, clean, start, pairs.mel, expert)
    lips = model.sync.rows.tolist()
    assert not slope[..., [row for row in range(120) if row not in lips]].any()

    def heard(x: torch.Tensor) -> torch.Tensor:
        return expert.score(generator.to_motion(x, start), pairs.mel)[1]

    assert (heard(clean + 0.1 * slope / slope.norm(dim=(1, 2), keepdim=True)) > heard(clean)).all()
    losses: list[float] = []

    def loss(step: int) -> torch.Tensor:
        now = slope_loss(model, pairs, expert)
        losses.append(float(now.detach()))
        return now

    minimize(model.parameters(), loss, 40, 6e-3, 0.0)
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


@pytest.mark.slow
def test_a_few_steps_tell_trembling_from_steady_latents(generator: ARFlow) -> None:
    # Motion of standard deviation 1 that changes over half a second and more, as a head does.
    torch.manual_seed(3)
    smooth = torch.nn.AvgPool1d(21, 1)
    clips = []
    for name in "abcdef":
        motion = smooth(smooth(torch.randn(1, 30, 80)))[0].T
        clips.append(MotionClip(name, name, motion / motion.std(), torch.randn(160, 80), torch.zeros(19)))
    heard = add_audio_conditions(generator, clips)
    config = LatentRewardTrainingConfig(steps=150, batch=45, width=32, learning_rate=4e-3, slope=0)
    model = train_latent_reward(config, generator, heard)
    pairs = LatentPairSampler(heard, generator.space, {"jitter": MOTION_CORRUPTIONS["jitter"]}, 9).draw(200, progress=0)
    clean, sound, start = pairs.all_clips()
    a, b = model(clean, 0.0, sound, start).clip().mean.chunk(2)
    column = DIMENSIONS.index("motion")
    assert (((a - b)[:, column] > 0) == (pairs.labels[:, column] == Label.FIRST)).float().mean() > 0.85
