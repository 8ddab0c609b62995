"""Claims about what long performances are measured by, learning from an own past, and drawing pictures freely."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from tools.train_patches import loss

from flowportrait.data.motion_dataset import MotionClip
from flowportrait.errors import BadInput
from flowportrait.flow.kernels import KERNELS
from flowportrait.flow.noise import NoiseKey
from flowportrait.flow.schedules import noise_schedule, solve_ode
from flowportrait.models.arflow import ARFlow
from flowportrait.models.flow_matching import RolloutHistory, approach_real_motion, join_speaker_clips
from flowportrait.models.patch_flow import LatentClip, PatchFlow, PatchFlowConfig, decode_patches, latents_to_patches
from flowportrait.models.pretrain import PretrainConfig, chunk_loss
from flowportrait.models.training_clips import lip_opening_per_number, measure_drift
from flowportrait.rendering import motion_basis as lips
from flowportrait.rendering.motion_basis import HEAD, LOWER_FACE, MotionBasis
from flowportrait.rendering.vae_codec import VaeCodec
from flowportrait.rewards.consistency import PerceptualReward
from flowportrait.rl.plan import AllSteps
from flowportrait.rl.rollout import check_replayed_noise, replay_velocity, rollout
from flowportrait.rl.task import FilmTask
from tests.models.test_generator import TINY

SMALL = PatchFlowConfig(grid=2, depth=12, hidden=16, layers=1, heads=2, window=4, audio_width=4, head_width=16)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_lip_gap_is_what_the_basis_draws_wherever_lips_are_open() -> None:
    basis, motion = MotionBasis.load(), 0.3 * torch.randn(6, 30, generator=draws())
    opened = basis.canonical.clone()
    opened[lips.LOWER_LIP_PAIRS, 1] += 1.0
    drawn = lips.lip_pair_gaps(basis.shape(motion, opened)).mean(-1)
    at_rest = lips.lip_pair_gaps(basis.shape(torch.zeros(1, 30), opened)).mean()
    assert torch.allclose(drawn - at_rest, motion @ lip_opening_per_number(), atol=1e-4)


def test_a_wandering_head_shifts_and_one_that_returns_does_not() -> None:
    steady = torch.randn(1, 1000, 30, generator=draws())
    wandering = steady.clone()
    wandering[..., HEAD] += torch.linspace(0, 5, 1000)[:, None]
    shift = [measure_drift(motion, 250, 1.0)["shift of head"][0] for motion in (steady, wandering)]
    assert shift[0].max() < 0.3
    assert (shift[1].diff() > 0.5).all()


def test_a_face_that_stops_is_still_from_then_on() -> None:
    motion = torch.randn(1, 500, 30, generator=draws())
    motion[:, 250:] = motion[:, 250:251]
    assert measure_drift(motion, 250, 1.0)["still"].tolist() == [[0.0, 1.0]]


def test_real_motion_is_approached_from_where_one_is_lips_first() -> None:
    real, offset = torch.randn(25, 30, generator=draws()), torch.ones(30)
    left = approach_real_motion(real, offset) - real
    assert (left[0] < 1).all()
    assert (left.diff(dim=0) < 0).all()
    assert left[12, LOWER_FACE].max() < 0.01 < 0.5 < left[12, HEAD].min()
    assert torch.equal(approach_real_motion(real, torch.zeros(30)), real)


def clip(speaker: str, seed: int, features: int, frames: int = 60) -> MotionClip:
    motion = 0.1 * torch.randn(frames, 30, generator=draws(seed)).cumsum(0) + seed
    return MotionClip(f"{speaker}{seed}", speaker, motion, torch.randn(frames, features), torch.zeros(19))


def test_clips_strung_together_do_not_jump() -> None:
    clips = [clip("a", seed, 8) for seed in range(4)] + [clip("b", 9, 8)]
    [long] = join_speaker_clips(clips, 160, 0)
    assert len(long.motion) == len(long.mel) == 240
    within = max(float(c.motion.diff(dim=0).abs().max()) for c in clips)
    assert float(long.motion.diff(dim=0).abs().max()) < within + 0.5 * 4


@pytest.fixture(scope="module")
def model() -> ARFlow:
    torch.manual_seed(0)
    return ARFlow(TINY)


def test_an_own_past_differs_from_the_real_one_and_is_followed_by_the_way_back(model: ARFlow) -> None:
    clips = [clip("a", seed, 768) for seed in range(3)]
    _, history, goal, *_ = RolloutHistory(clips, 80, 2, sampled=False, generator=draws())(model)
    assert torch.equal(history, goal)
    lesson = RolloutHistory(clips, 80, 2, sampled=True, generator=draws())(model)
    _, own, back, *_ = lesson
    assert torch.allclose(back[:, 0], goal[:, 0], atol=1e-5)
    away, home = (own[:, :-1, -1] - goal[:, :-1, -1]).abs(), (back[:, 1:, -1] - goal[:, 1:, -1]).abs()
    assert (home[..., LOWER_FACE] < 0.2 * away[..., LOWER_FACE] + 1e-6).all()
    assert model.config == TINY
    loss_ = chunk_loss(model, *lesson, PretrainConfig(generator=TINY), draws())
    loss_.backward()
    assert torch.isfinite(loss_)


def test_without_long_windows_nothing_is_learned_from_an_own_past() -> None:
    assert PretrainConfig().long_window == 0


@pytest.fixture(scope="module")
def painter() -> PatchFlow:
    torch.manual_seed(0)
    model = PatchFlow(SMALL).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def scenes(count: int = 3, frames: int = 6) -> list[LatentClip]:
    return [
        LatentClip(torch.randn(frames + 1, SMALL.latent_dim, generator=draws(i)), torch.randn(frames + 1, 20), "a")
        for i in range(count)
    ]


class Doubling:
    """An autoencoder without loss: every cell is three 2 × 2 squares of pixels."""

    config: ClassVar[dict[str, Any]] = {"block_out_channels": (1, 1)}
    dtype = torch.float32
    encoder = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1))

    def eval(self) -> Doubling:
        return self

    def requires_grad_(self, _: bool) -> Doubling:
        return self

    def named_buffers(self) -> list[Any]:
        return []

    def parameters(self) -> Any:
        return self.encoder.parameters()

    def encode(self, pixels: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(latents=F.pixel_unshuffle(pixels, 2)[:, :3])

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=F.interpolate(latents, scale_factor=2))


def test_patches_and_pictures_are_each_others_inverse() -> None:
    codec, cells = VaeCodec(Doubling()), torch.rand(2, 3, 4, 4, generator=draws()) * 2 - 1
    shown = (
        torch.tensor(list(decode_patches(latents_to_patches(cells), codec, 8))[1]).permute(2, 0, 1).float() / 127.5 - 1
    )
    assert torch.allclose(shown, F.interpolate(cells[1:], scale_factor=2)[0], atol=0.01)


def test_a_painter_draws_the_same_with_and_without_its_cache(painter: PatchFlow) -> None:
    latents = torch.randn(2, 6, SMALL.latent_dim)
    with torch.no_grad():
        condition = painter.condition(torch.randn(2, 6, 20), torch.randn(2, SMALL.latent_dim))
        session, whole = painter.session(condition), painter.contexts(condition, latents)
        for frame in range(6):
            assert torch.allclose(session.context(), whole[:, frame], atol=1e-5)
            session.append(latents[:, frame])


def test_a_painter_is_post_trained_as_any_policy(painter: PatchFlow) -> None:
    task = FilmTask(scenes(), 5, VaeCodec(Doubling()), 8)
    prompts = task.draw(2, 0, 0).select(torch.tensor([0, 0, 1, 1]))
    plan = AllSteps(steps=3)(0, 0, 2, 5)
    with torch.no_grad():
        condition = task.condition(painter, prompts)
    group, sample = torch.tensor([0, 0, 1, 1]), torch.arange(4)
    made = rollout(painter, condition, group, sample, plan, KERNELS["flow-sde"](0.5), NoiseKey(7))
    with torch.no_grad():
        check_replayed_noise(made, replay_velocity(painter, made))
    batch = task.batch(painter, made, prompts)
    assert batch.frames((0, 4)).shape == (4, 2, 3, 8, 8)
    assert not torch.equal(batch.frames((4,))[0], batch.frames((4,))[1])
    assert "policy" in batch.has


def test_perceptual_rewards_look_at_what_a_painter_drew(painter: PatchFlow) -> None:
    def score(share: float) -> float:
        still = torch.zeros(1, 5, SMALL.latent_dim)
        noise = torch.randn(still.shape, generator=draws())
        made = SimpleNamespace(latents=still + share * noise, group=torch.zeros(1), condition=None)
        task = FilmTask(scenes(1), 5, VaeCodec(Doubling()), 8)
        return float(PerceptualReward(real={}).measure(task.batch(painter, made, None))["perceptual/ssim/frames"])  # type: ignore[arg-type]

    assert score(0.05) > score(1.0)


def test_before_it_has_learned_anything_a_painter_repeats_the_portrait() -> None:
    model, portrait = PatchFlow(SMALL), torch.randn(1, SMALL.latent_dim)
    with torch.no_grad():
        session = model.session(model.condition(torch.randn(1, 4, 20), portrait))
        for _ in range(4):
            context = session.context()
            x = solve_ode(
                lambda x, s, c=context: model.velocity(x, s, c), torch.randn_like(portrait), noise_schedule(3)
            )
            assert torch.allclose(session.append(x), portrait, atol=1e-5)
    value = loss(model, scenes(frames=14), draws())
    value.backward()
    assert all(p.grad is not None for p in model.head.write.parameters())


def test_a_painter_survives_the_disk_and_says_what_is_missing(painter: PatchFlow, tmp_path: Path) -> None:
    painter.save_pretrained(tmp_path)
    again = PatchFlow.from_pretrained(tmp_path)
    assert again.config == SMALL
    assert torch.allclose(again.frame_in.weight, painter.frame_in.weight, atol=1e-2)
    with pytest.raises(BadInput, match="picture generator"):
        PatchFlow.from_pretrained(tmp_path / "elsewhere")
    assert replace(SMALL, grid=3).latent_dim == 108
