"""Claims about rewards that look at pictures: each notices its own kind of damage, where it is, and little else."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut

from flowportrait.errors import BadInput
from flowportrait.media.optical_flow import DisFlow, build_optical_flow, read_raft_tensors, torchvision_raft_name
from flowportrait.media.portrait import Portrait
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.consistency import (
    PerceptualReward,
    SharpnessReward,
    TemporalReward,
    build_similarity,
    region_masks,
)
from flowportrait.rewards.face import FaceNet, IdentityReward, RealnessReward
from flowportrait.rewards.interface import Reward, Score, measurement_noises, real_statistics
from flowportrait.rewards.registry import WEIGHTED_REWARDS, build_reward, reward_noise_key
from flowportrait.rl.task import PortraitRenderer

Damage = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Frames ``[B, F, 3, S, S]`` and landmarks ``[B, F, 478, 2]`` to damaged frames."""


@lru_cache(maxsize=1)
def clean() -> RewardBatch:
    """A portrait that speaks a little, 128 px."""
    codec = MotionCodec(Portrait.from_image(astronaut()), 128, retouch=False)
    time = torch.arange(28)[:, None] / 25
    motion = 0.6 * torch.sin(2 * torch.pi * (1.5 * time + torch.linspace(0, 1, 30)))
    return RewardBatch(motion[None], torch.zeros(1, 112, 80), PortraitRenderer([codec], [0], 128))


def damaged(damage: Damage) -> RewardBatch:
    whole = clean()

    def draw(_: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        return damage(whole.frames(indices).clone(), whole.places(indices))

    places = lambda _, indices: whole.places(indices)  # noqa: E731
    return RewardBatch(whole.motion, whole.mel, draw, places, portraits=whole.portraits)


def blurred(frames: torch.Tensor, sigma: float) -> torch.Tensor:
    flat = frames.flatten(0, 1).permute(0, 2, 3, 1).numpy()
    soft = np.stack([cv2.GaussianBlur(np.ascontiguousarray(picture), (0, 0), sigma) for picture in flat])
    return torch.from_numpy(soft).permute(0, 3, 1, 2).unflatten(0, frames.shape[:2])


def in_mouth(frames: torch.Tensor, places: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    mask = region_masks(places.flatten(0, 1), (128, 128))["mouth"].unflatten(0, frames.shape[:2])[:, :, None]
    return mask * other + (1 - mask) * frames


def one(reward: Reward, batch: RewardBatch) -> float:
    return float(reward(batch).value)


def change(reward: Reward, damage: Damage) -> float:
    return one(reward, damaged(damage)) - one(reward, clean())


def test_every_pixel_belongs_to_one_region_and_regions_are_where_they_should_be() -> None:
    points = clean().places((0,))[:, 0]
    parts = region_masks(points, (128, 128))
    assert torch.equal(sum(parts.values()), torch.ones(1, 128, 128))  # type: ignore[arg-type]
    for name, index in (("mouth", 13), ("eyes", 468), ("face", 4)):
        x, y = points[0, index].round().long()
        assert parts[name][0, y, x] == 1
    assert parts["background"][0, 2, 2] == 1


@pytest.mark.parametrize("sigma", [1.0, 2.5])
def test_a_soft_picture_is_less_sharp_and_less_real_and_not_less_steady(sigma: float) -> None:
    soft: Damage = lambda frames, _: blurred(frames, sigma)  # noqa: E731
    assert change(SharpnessReward.load(), soft) < -1.0
    assert change(RealnessReward.load(), soft) < -0.5
    assert change(TemporalReward.load(), soft) > -0.3


def test_a_little_softness_does_not_change_who_it_is() -> None:
    assert change(IdentityReward.load(), lambda frames, _: blurred(frames, 0.8)) > -0.1


def test_a_soft_mouth_is_found_in_the_mouth() -> None:
    found = SharpnessReward.load()(damaged(lambda frames, places: in_mouth(frames, places, blurred(frames, 2))))
    before = SharpnessReward.load()(clean())
    assert found.regions is not None
    assert before.regions is not None
    assert found.regions["mouth"] < before.regions["mouth"] - 1.0
    assert found.regions["eyes"] > before.regions["eyes"] - 0.2


def flickering(frames: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return (frames + 0.06 * torch.tensor([1.0, -1.0]).repeat(frames.shape[1] // 2)[:, None, None, None]).clamp(0, 1)


def test_flicker_is_temporal_damage_and_does_not_change_who_it_is() -> None:
    assert change(TemporalReward.load(), flickering) < -0.5
    assert abs(change(IdentityReward.load(), flickering)) < 0.05


def test_flicker_in_the_mouth_is_found_in_the_mouth() -> None:
    def damage(frames: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return in_mouth(frames, places, flickering(frames, places))

    found, before = TemporalReward.load()(damaged(damage)), TemporalReward.load()(clean())

    def drop(region: str) -> float:
        assert found.regions is not None
        assert before.regions is not None
        return float(before.regions[region] - found.regions[region])

    assert drop("mouth") > 3 * max(drop("eyes"), drop("background"), 0.05)


def test_another_face_costs_identity() -> None:
    def mirrored_halves(frames: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return frames.flip(3)[..., :].flip(1)

    own = one(IdentityReward.load(), clean())
    assert own > 0.8
    assert change(IdentityReward.load(), mirrored_halves) < -0.3


@pytest.mark.parametrize("backbone", ["ssim", "face"])
def test_a_torn_picture_does_not_hold_together(backbone: str) -> None:
    def torn(frames: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        frames[:, 1::2, :, 64:] = frames[:, 1::2, :, 64:].roll(6, -1)
        return frames

    assert change(PerceptualReward.load(build_similarity(backbone)), torn) < -0.3


def test_pictures_alike_give_one_under_every_backbone() -> None:
    picture = clean().frames((0, 9))[0]
    for name in ("ssim", "face"):
        backbone = build_similarity(name)
        assert torch.allclose(backbone(picture, picture), torch.ones(2), atol=1e-4)
        assert (backbone(picture, picture.flip(3)) < 0.95).all()


@pytest.mark.parametrize("kind", ["clip", "dino"])
def test_image_models_come_from_a_folder_by_name(kind: str, tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "clip":
        vision = {**small, "image_size": 32, "patch_size": 8}
        model = CLIPModel(CLIPConfig(text_config={**small, "vocab_size": 99}, vision_config=vision, projection_dim=16))
    else:
        model = Dinov2Model(Dinov2Config(image_size=28, patch_size=14, mlp_ratio=2, **small))
    model.save_pretrained(tmp_path)
    picture = clean().frames((0, 9))[0]
    backbone = build_similarity(kind, str(tmp_path))
    assert torch.allclose(backbone(picture, picture), torch.ones(2), atol=1e-4)
    assert (backbone(picture, 1 - picture.flip(2)) < 0.9999).all()
    assert one(PerceptualReward.load(backbone), clean()) <= 0


def test_what_cannot_be_loaded_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No backbone named 'vgg': choose one of ssim, face, lpips, clip, dino"):
        build_similarity("vgg")
    with pytest.raises(BadInput, match="cannot be loaded"):
        build_similarity("clip", str(tmp_path))
    with pytest.raises(BadInput, match="No optical flow named 'sea': choose dis or raft"):
        build_optical_flow("sea")
    with pytest.raises(BadInput, match=r"'raft' needs a torchvision|No RAFT weights at"):
        build_optical_flow("raft", tmp_path / "none.pth")


def test_flow_points_back_to_where_a_pixel_was() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 24, 24, generator=generator)
    texture = torch.nn.functional.interpolate(coarse, size=(160, 160), mode="bicubic").clamp(0, 1)
    before, after = texture[..., 16:144, 16:144], texture[..., 13:141, 18:146]
    assert np.allclose(DisFlow()(before, after)[0, 20:-20, 20:-20].mean((0, 1)), (2, -3), atol=0.15)


def test_a_flow_without_statistics_of_its_own_is_compared_with_dis() -> None:
    class Raft(DisFlow):
        name = "raft"

    assert one(TemporalReward.load(Raft()), clean()) == one(TemporalReward.load(), clean())


def test_raft_reads_a_file_whatever_the_order_of_its_tensors(tmp_path: Path) -> None:
    optical_flow = pytest.importorskip("torchvision.models.optical_flow", exc_type=(ImportError, RuntimeError))
    stored = dict(reversed(optical_flow.raft_small().state_dict().items()))
    torch.save(stored, tmp_path / "raft-small.pth")
    picture = torch.rand(1, 3, 128, 128)
    assert build_optical_flow("raft", tmp_path / "raft-small.pth")(picture, picture).shape == (1, 128, 128, 2)


def test_the_face_network_embeds_on_the_unit_sphere() -> None:
    found = FaceNet.load()(torch.rand(2, 3, 128, 128))
    assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-5)


def test_every_built_in_reward_says_what_it_needs_and_how_well_it_repeats() -> None:
    for name in WEIGHTED_REWARDS:
        reward = build_reward(name)
        assert reward.name == name
        assert reward.needs
        assert measurement_noises()[reward_noise_key(reward)] == reward.noise > 0  # type: ignore[attr-defined]
    assert all(normal.std > 0 for normal in real_statistics().values())


def test_scores_do_not_depend_on_the_batch() -> None:
    whole = clean()
    motion = torch.cat([whole.motion, 1.5 * whole.motion])
    codec = whole.draw.codecs[0]  # type: ignore[union-attr]
    both = RewardBatch(motion, torch.zeros(2, 112, 80), PortraitRenderer([codec], [0, 0], 128))
    for reward in (
        TemporalReward.load(),
        PerceptualReward.load(),
        IdentityReward.load(),
        SharpnessReward.load(),
        RealnessReward.load(),
    ):
        found: Score = reward(both)
        assert float(found.value[0]) == pytest.approx(one(reward, whole), abs=1e-3)


@pytest.mark.parametrize(
    ("theirs", "torchvisions"),
    [
        ("module.fnet.conv1.weight", "feature_encoder.convnormrelu.0.weight"),
        ("module.cnet.conv2.bias", "context_encoder.conv.bias"),
        ("module.fnet.layer2.0.conv3.weight", "feature_encoder.layer2.0.convnormrelu3.0.weight"),
        ("module.fnet.layer3.0.downsample.0.bias", "feature_encoder.layer3.0.downsample.0.bias"),
        ("module.update_block.encoder.convf2.weight", "update_block.motion_encoder.convflow2.0.weight"),
        ("module.update_block.gru.convq.bias", "update_block.recurrent_block.convgru1.convq.bias"),
        ("update_block.flow_head.conv1.weight", "update_block.flow_head.conv1.weight"),
    ],
)
def test_the_authors_raft_weights_find_their_place(theirs: str, torchvisions: str) -> None:
    assert torchvision_raft_name(theirs) == torchvisions
    assert torchvision_raft_name(torchvisions) == torchvisions


def test_raft_weights_are_taken_by_name_and_checked() -> None:
    """Version 0.1 paired tensors with names by their order in the file."""
    expected = {
        "feature_encoder.layer1.0.convnormrelu1.0.weight": torch.zeros(8, 32, 1, 1),
        "update_block.flow_head.conv1.bias": torch.zeros(9),
    }
    stored = {
        "module.update_block.flow_head.conv1.bias": torch.arange(9.0),
        "module.fnet.layer1.0.conv1.weight": torch.ones(8, 32, 1, 1),
    }
    path = Path("raft.pth")
    found = read_raft_tensors(stored, expected, path)
    assert torch.equal(found["update_block.flow_head.conv1.bias"], torch.arange(9.0))
    assert found.keys() == expected.keys()
    assert read_raft_tensors(found, expected, path).keys() == expected.keys()
    short = dict(list(stored.items())[:1])
    with pytest.raises(BadInput, match=r"lacks feature_encoder\.layer1\.0\.convnormrelu1\.0\.weight"):
        read_raft_tensors(short, expected, path)
    with pytest.raises(BadInput, match=r"has an unknown extra\.weight"):
        read_raft_tensors(stored | {"extra.weight": torch.zeros(1)}, expected, path)
    turned = stored | {"module.fnet.layer1.0.conv1.weight": torch.ones(32, 8, 1, 1)}
    with pytest.raises(BadInput, match=r"weight is \(32, 8, 1, 1\), not \(8, 32, 1, 1\)"):
        read_raft_tensors(turned, expected, path)
    with pytest.raises(BadInput, match="not tensors by name"):
        read_raft_tensors([1, 2], expected, path)
