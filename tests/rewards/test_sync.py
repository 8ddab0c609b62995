"""The two sync experts: what they may see, and whether they hear."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.train_sync_expert import contrastive_loss, shifted_score

from flowportrait.corruption.motion import negative_controls
from flowportrait.data.corpus import FaceClip
from flowportrait.data.extract import longest_usable_clip
from flowportrait.evaluation.lip_sync import PixelSyncExpert
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.rendering.motion_basis import MotionBasis
from flowportrait.rewards.sync import MotionSyncExpert as MotionExpert

FRAMES = 24


def motion(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(2, FRAMES, 30))).float()


def mel(seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(1, 1, size=(2, 4 * FRAMES, 80))).float()


def patches(seed: int = 2) -> torch.Tensor:
    coarse = torch.from_numpy(np.random.default_rng(seed).uniform(40, 200, size=(2, FRAMES, 6, 8))).float()
    return torch.nn.functional.interpolate(coarse, size=(48, 64), mode="bicubic").clamp(0, 255)


@pytest.mark.parametrize(("expert", "face"), [(PixelSyncExpert, patches), (MotionExpert, motion)])
def test_scores_are_cosines_and_windows_are_never_padded(expert, face) -> None:
    cosine, clip = expert.load().score(face(), mel())
    assert cosine.shape == (2, FRAMES - expert.WINDOW + 1)
    assert cosine.abs().max() <= 1 + 1e-5
    torch.testing.assert_close(clip, cosine.mean(1))


@pytest.mark.parametrize(("expert", "face"), [(PixelSyncExpert, patches), (MotionExpert, motion)])
def test_a_window_hears_exactly_its_own_frames(expert, face) -> None:
    net, sound = expert.load(), mel()
    changed = sound.clone()
    changed[:, : 4 * 6] += 3.0
    before, after = net.embed_audio(sound), net.embed_audio(changed)
    torch.testing.assert_close(before[:, 6:], after[:, 6:])
    assert not torch.allclose(before[:, 5], after[:, 5], atol=1e-4)


def test_the_pixel_expert_sees_exactly_five_frames() -> None:
    net, picture = PixelSyncExpert.load(), patches()
    changed = picture.clone()
    changed[:, :6] = 255 - changed[:, :6]
    before, after = net.embed_face(picture), net.embed_face(changed)
    torch.testing.assert_close(before[:, 6:], after[:, 6:])
    assert not torch.allclose(before[:, 5], after[:, 5], atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(gain=st.floats(0.5, 1.5), offset=st.floats(-40, 40))
def test_exposure_does_not_change_what_the_pixel_expert_sees(gain: float, offset: float) -> None:
    net, picture = PixelSyncExpert.load(), patches()
    similarity = (net.embed_face(picture) * net.embed_face(gain * picture + offset)).sum(-1)
    assert similarity.min() > 0.99


def test_whose_mouth_it_is_does_not_change_the_motion_score() -> None:
    net, moving = MotionExpert.load(), motion()
    torch.testing.assert_close(
        net.score(moving, mel())[0], net.score(moving + torch.randn(1, 1, 30), mel())[0], atol=1e-4, rtol=0
    )


def test_the_motion_score_is_differentiable() -> None:
    """Its gradient is what finite differences say, along random directions of the lips; the rest of the face has
    none."""
    net, moving, sound = copy.deepcopy(MotionExpert.load()).double(), motion().double(), mel().double()
    leaf = moving.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net.score(leaf, sound)[1].sum(), leaf)
    assert torch.equal(slope[..., 16:], torch.zeros_like(slope[..., 16:]))
    draw, step = torch.Generator().manual_seed(0), 1e-5
    for _ in range(5):
        along = torch.randn(moving.shape, generator=draw, dtype=torch.float64)
        with torch.no_grad():
            up, down = (net.score(moving + side * step * along, sound)[1].sum() for side in (1, -1))
        assert float((slope * along).sum()) == pytest.approx(float(up - down) / (2 * step), rel=1e-4, abs=1e-7)
    ahead = moving + 0.1 * slope / slope.norm()
    with torch.no_grad():
        assert float(net.score(ahead, sound)[1].sum()) > float(net.score(moving, sound)[1].sum()) + 1e-4


def test_perfect_embeddings_have_the_lowest_loss_and_the_loss_is_finite_with_its_gradient() -> None:
    torch.manual_seed(0)
    face = torch.nn.functional.normalize(torch.randn(4, 12, 64), dim=-1)
    fake = torch.nn.functional.normalize(torch.randn(2, 1, 12, 64), dim=-1)
    scale = torch.tensor(20.0, requires_grad=True)
    right = contrastive_loss(face, face, fake, scale)
    assert right < 0.01
    assert contrastive_loss(face, face.roll(3, 1), fake, scale) > 5 * right + 1
    right.backward()
    assert torch.isfinite(scale.grad)


def _clips(split: str, wanted: int) -> list[FaceClip]:
    """A few of the split's GRID clips, tracked on the spot."""
    data = Path(os.environ["FLOWPORTRAIT_DATA"])
    table = data / "split.tsv"
    if not table.is_file():
        pytest.skip("FLOWPORTRAIT_DATA does not hold the development footage")
    rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
    files = [data / row[0] for row in rows if row[2] == split and row[0].startswith("grid")]
    return [longest_usable_clip(file) for file in files[:wanted]]


@pytest.mark.data
def test_both_experts_rank_real_above_every_baseline() -> None:
    clips = _clips("dev", 5)
    basis = MotionBasis.load()
    moving = [basis.encode(clip.landmarks, clip.blendshapes)[0] for clip in clips]
    motion_expert, pixel_expert = MotionExpert.load(), PixelSyncExpert.load()
    real, lost, curve = [], {}, {0: [], 3: [], 8: [], "still": []}
    for place, clip in enumerate(clips):
        sound = log_mel(normalize_loudness(clip.audio))
        real.append(float(motion_expert.score(moving[place][None], sound[None])[1]))
        for name, fake in negative_controls(moving[place], clip.audio, moving[place - 1]).items():
            lost.setdefault(name, []).append(float(motion_expert.score(fake[None], sound[None])[1]))
        mouth = torch.from_numpy(clip.mouth)
        voice = pixel_expert.embed_audio(sound[None])[0]
        face = pixel_expert.embed_face(mouth[None])[0]
        for shift in (0, 3, 8):
            curve[shift].append(shifted_score(face, voice, shift))
        frozen = pixel_expert.embed_face(mouth[40:41].expand_as(mouth)[None])[0]
        curve["still"].append(shifted_score(frozen, voice, 0))
    for scores in lost.values():
        assert np.mean(scores) < np.mean(real) - 0.15
    assert np.mean(curve[0]) > np.mean(curve[3]) + 0.05
    assert np.mean(curve[0]) > np.mean(curve[8]) + 0.1
    assert np.mean(curve[0]) > np.mean(curve["still"]) + 0.1
