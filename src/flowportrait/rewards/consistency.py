"""This module defines rewards of pictures over time: perceptual consistency, temporal consistency, and sharpness.

All three compare a measurement of the frames with its mean μ and standard deviation d over real footage. The parts, in
order: regions of a picture, similarities of two pictures, and the three rewards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from flowportrait.devices import device_of, place_network
from flowportrait.errors import BadInput
from flowportrait.media.optical_flow import DisFlow, OpticalFlow
from flowportrait.rendering.face_regions import EYES, OUTER_LOWER, OUTER_UPPER
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.face import (
    FACES_PER_PASS,
    FaceNet,
    align_faces,
    frame_pair_indices,
    resize_portrait,
    structural_similarity,
)
from flowportrait.rewards.interface import RealStatistic, Score, all_valid, measurement_noises, real_statistics

# --- Regions of a picture ---

MOUTH_LANDMARKS = OUTER_UPPER + OUTER_LOWER
"""Landmarks of the outer lips."""
LID_LANDMARKS = [upper + lower for upper, lower, _ in EYES]
"""Landmarks of the lids of each eye."""
_MARGIN = 0.12
"""Margin around lips and lids, in outer-eye-corner distances."""


def region_masks(places: torch.Tensor, side: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Return the masks ``[N, H, W]`` of mouth, eyes, the rest of the face, and background.

    Every pixel belongs to one of them.

    Args:
        places: landmarks ``[N, 478, 2]`` in pixels.
        side: height and width of the pictures.
    """
    shape = (len(places), *side)
    mouth, eyes, face = (np.zeros(shape, np.uint8) for _ in range(3))
    for row, points in enumerate(places.numpy()):
        margin = _MARGIN * float(np.linalg.norm(points[33] - points[263]))
        _fill(mouth[row], points[MOUTH_LANDMARKS], margin)
        for eye in LID_LANDMARKS:
            _fill(eyes[row], points[eye], margin)
        _fill(face[row], points[:468], 0.0)
    eyes &= 1 - mouth
    face &= (1 - mouth) & (1 - eyes)
    background = 1 - mouth - eyes - face
    parts = {"mouth": mouth, "eyes": eyes, "face": face, "background": background}
    return {name: torch.from_numpy(part).float() for name, part in parts.items()}


def masked_region_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean ``[N]`` of values ``[N, H, W]`` inside a mask, NaN if the mask is empty."""
    return (values * mask).sum((1, 2)) / mask.sum((1, 2))


def _fill(canvas: np.ndarray, points: np.ndarray, margin: float) -> None:
    """Fill the convex hull of points, which is widened by a margin."""
    middle = points.mean(0)
    reach = np.linalg.norm(points - middle, axis=1, keepdims=True)
    hull = cv2.convexHull((middle + (points - middle) * (1 + margin / np.maximum(reach, 1e-6))).astype(np.float32))
    cv2.fillConvexPoly(canvas, np.round(hull).astype(np.int32), 1)


# --- Similarities of two pictures ---
#
# All of them are 1 for equal pictures and less for others.
#
#     ssim         structural similarity                      no further package, fastest    (Wang 2004)
#     face         cosine of a face network's feature maps    ships with the package
#     lpips        1 − LPIPS                                  torchmetrics and torchvision   (Zhang, 1801.03924)
#     clip, dino   cosine of image embeddings                 transformers, and a folder or hub name of a model

SimilarityName = Literal["ssim", "face", "lpips", "clip", "dino"]
HUB_NAMES = {"clip": "openai/clip-vit-base-patch32", "dino": "facebook/dinov2-small"}
"""Default hub names of image models."""


class ImageSimilarity(Protocol):
    """A function that returns the similarity ``[N]`` of RGB pictures ``[N, 3, H, W]`` in [0, 1]."""

    @property
    def name(self) -> str: ...

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor: ...


class SsimSimilarity:
    """Structural similarity with box windows; see ``structural_similarity``."""

    name = "ssim"

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return structural_similarity(a, b)


class FaceFeatureSimilarity:
    """The cosine at each position of three feature maps of a face network, averaged. LPIPS without learned weights."""

    name = "face"

    @torch.no_grad()
    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        net, similarities = FaceNet.load(), []
        for first, second in zip(a.split(FACES_PER_PASS), b.split(FACES_PER_PASS), strict=True):
            maps = zip(net.features(first), net.features(second), strict=True)
            similarities.append(torch.stack([F.cosine_similarity(x, y, dim=1).mean((1, 2)) for x, y in maps]).mean(0))
        return torch.cat(similarities).cpu()


class LpipsSimilarity:
    """Learned perceptual similarity (LPIPS) from torchmetrics."""

    name = "lpips"

    def __init__(self, net: str = "squeeze") -> None:
        try:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            distance = LearnedPerceptualImagePatchSimilarity(net, reduction="none", normalize=True)
            self._distance: Any = place_network(distance)
        except (ImportError, ModuleNotFoundError, RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(f"Backbone 'lpips' cannot be loaded ({reason}): use ssim or face.") from error

    @torch.no_grad()
    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a, b = (2 * picture.to(device_of(self._distance)) - 1 for picture in (a, b))
        return 1 - self._distance.net(a, b).flatten().cpu()


class EmbeddingSimilarity:
    """The cosine of the embeddings of an image model: CLIP's projected embedding, or DINO's class token."""

    def __init__(self, name: str, model: str) -> None:
        self.name = name
        network, self._side, self._mean, self._std = _image_model(model)
        self.network: Any = place_network(network)

    @torch.no_grad()
    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.cosine_similarity(self.embed(a), self.embed(b), dim=-1).cpu()

    def embed(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the embeddings ``[N, D]`` of pictures ``[N, 3, H, W]`` in [0, 1], on the network's device."""
        resized = F.interpolate(pictures, size=(self._side, self._side), mode="bicubic", antialias=True).clamp(0, 1)
        normalized = ((resized - self._mean) / self._std).to(device_of(self.network))
        if hasattr(self.network, "get_image_features"):
            output = self.network.get_image_features(pixel_values=normalized)
            return output if isinstance(output, torch.Tensor) else output.pooler_output
        return self.network(pixel_values=normalized).last_hidden_state[:, 0]


@lru_cache(maxsize=4)
def _image_model(model: str) -> tuple[Any, int, torch.Tensor, torch.Tensor]:
    """Return an image model, the side of its input in pixels, and the mean and deviation of its input."""
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(model)
        net = AutoModel.from_pretrained(model).eval().requires_grad_(False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"The image model {model!r} cannot be loaded ({reason}): give a folder or hub name.") from error
    vision = getattr(config, "vision_config", config)
    # The published statistics: OpenAI's for CLIP, ImageNet's for DINO.
    clip = hasattr(net, "get_image_features")
    mean = (0.48145466, 0.4578275, 0.40821073) if clip else (0.485, 0.456, 0.406)
    std = (0.26862954, 0.26130258, 0.27577711) if clip else (0.229, 0.224, 0.225)
    return net, int(vision.image_size), torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]


def build_similarity(name: str, model: str | None = None) -> ImageSimilarity:
    """Return the similarity of a name; ``model`` overrides the hub name of clip and dino.

    Raises:
        BadInput: the name is unknown, or the model cannot be loaded.
    """
    if name == "ssim":
        return SsimSimilarity()
    if name == "face":
        return FaceFeatureSimilarity()
    if name == "lpips":
        return LpipsSimilarity()
    if name in HUB_NAMES:
        return EmbeddingSimilarity(name, model or HUB_NAMES[name])
    raise BadInput(f"No backbone named {name!r}: choose one of ssim, face, lpips, clip, dino.")


# --- Perceptual consistency ---

_EQUAL = 1e-3
_LOG_SCALE_MAX = -math.log(_EQUAL)
"""Value of equal pictures on the logarithmic scale of similarity."""

ALIGNED_SIDE = 96
"""Side in pixels of the aligned face, about that of the face in a 128 px rendering."""


@dataclass(frozen=True)
class PerceptualReward:
    """Rewards frames that are as similar to each other, and to the portrait, as those of real footage.

        f = − ln(1.001 − similarity of neighbouring frames)      p = the same of aligned faces to the portrait
        perceptual = − ½ huber( (f − μ_f) / d_f ) − ½ huber( (p − μ_p) / d_p )

    It is two-sided: frames of a torn or pulsating face are less similar than real ones, those of a frozen or blurred
    face more. Without a portrait the median picture of the clip replaces it. Without landmarks frames are compared
    without alignment.
    """

    real: Mapping[str, RealStatistic] = field(default_factory=real_statistics)
    backbone: ImageSimilarity = field(default_factory=SsimSimilarity)
    noise: float = 0.0
    name: str = "perceptual"
    needs: frozenset[str] = frozenset({"frames"})

    @classmethod
    def load(cls, backbone: ImageSimilarity | None = None) -> PerceptualReward:
        """Return the reward with a similarity (SSIM by default) and its shipped statistics."""
        backbone = backbone or SsimSimilarity()
        return cls(backbone=backbone, noise=measurement_noises().get(f"perceptual/{backbone.name}", 0.0))

    def __call__(self, batch: RewardBatch) -> Score:
        distance = torch.zeros(len(batch))
        for name, value in self.measure(batch).items():
            z = self._normal(f"{name}/{batch.domain}").z(value)
            distance += 0.5 * F.huber_loss(z, torch.zeros_like(z), reduction="none")
        return all_valid(-distance)

    def measure(self, batch: RewardBatch) -> dict[str, torch.Tensor]:
        """Return f and p ``[B]`` under the names of their statistics."""
        indices = frame_pair_indices(batch.motion.shape[1])
        frames = batch.frames(indices)
        neighbours = self._log_similarity(frames[:, 0::2], frames[:, 1::2])
        compared, kind = frames, "median"
        if "places" in batch.has:
            faces = align_faces(frames.flatten(0, 1), batch.places(indices).flatten(0, 1), ALIGNED_SIDE)
            compared = faces.unflatten(0, frames.shape[:2])
            kind = "median" if batch.portraits is None else "portrait"
        if kind == "portrait":
            reference = _aligned_portraits(batch, frames.shape[-1])[:, None]
        else:
            reference = compared.median(1, keepdim=True).values
        likeness = self._log_similarity(compared, reference.expand_as(compared))
        prefix = f"perceptual/{self.backbone.name}"
        return {f"{prefix}/frames": neighbours, f"{prefix}/{kind}": likeness}

    def _log_similarity(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        similarity = self.backbone(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, a.shape[:2]).mean(1)
        # Similarities crowd just below 1. On this scale real clips spread evenly and a frozen one is an outlier.
        return -(1 + _EQUAL - similarity).clamp_min(_EQUAL).log()

    def _normal(self, name: str) -> RealStatistic:
        # Without statistics of real footage for this similarity, more similar counts as better.
        return self.real.get(name, RealStatistic(_LOG_SCALE_MAX, 1.0))


def _aligned_portraits(batch: RewardBatch, side: int) -> torch.Tensor:
    """Return the aligned portrait of every row ``[B, 3, S, S]``; each is aligned once."""
    assert batch.portraits is not None
    people = {id(portrait): portrait for portrait in batch.portraits}
    aligned = {}
    for key, portrait in people.items():
        picture, points = resize_portrait(portrait, side)
        aligned[key] = align_faces(picture[None], points[None], ALIGNED_SIDE)[0]
    return torch.stack([aligned[id(portrait)] for portrait in batch.portraits])


# --- Temporal consistency ---

_RESIDUAL_FLOOR, _GRADIENT_FLOOR = 5e-4, 2e-3


@dataclass(frozen=True)
class TemporalReward:
    """Penalises changes between neighbouring frames that optical flow does not explain.

        m = ln ( mean |later − warp(now, flow)| / mean |∇ later| )          temporal = − softplus( (m − μ) / d )

    A residual smaller than that of real motion is hardly rewarded, so stillness does not win. The residual is divided
    by the gradients of the picture, since a blurred video would otherwise look steadier than a sharp one. All three
    colours count, so that flicker of colour at constant brightness is penalised. It uses two pairs of frames. With
    landmarks it also has scores by region.
    """

    real: Mapping[str, RealStatistic] = field(default_factory=real_statistics)
    flow: OpticalFlow = field(default_factory=DisFlow)
    noise: float = 0.0
    name: str = "temporal"
    needs: frozenset[str] = frozenset({"frames"})

    @classmethod
    def load(cls, flow: OpticalFlow | None = None) -> TemporalReward:
        """Return the reward with an optical flow (DIS by default) and its shipped statistics."""
        flow = flow or DisFlow()
        return cls(flow=flow, noise=measurement_noises().get(f"temporal/{flow.name}", 0.0))

    def __call__(self, batch: RewardBatch) -> Score:
        # A flow without statistics of real footage uses those of DIS.
        default = self.real[f"temporal/dis/{batch.domain}"]
        real = self.real.get(f"temporal/{self.flow.name}/{batch.domain}", default)
        value, parts = self._measure(batch)
        regions = {name: -F.softplus(real.z(part)) for name, part in parts.items()}
        return all_valid(-F.softplus(real.z(value)))._replace(regions=regions or None)

    def measure(self, batch: RewardBatch) -> dict[str, torch.Tensor]:
        """Return m ``[B]`` under the name of its statistics."""
        return {f"temporal/{self.flow.name}": self._measure(batch)[0]}

    def _measure(self, batch: RewardBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return m ``[B]`` of the whole picture, and by region."""
        indices = frame_pair_indices(batch.motion.shape[1])
        frames = batch.frames(indices)
        now, later = frames[:, 0::2].flatten(0, 1), frames[:, 1::2].flatten(0, 1)
        residual = warp_residual(now, later, self.flow(now, later))
        gradient = _gradient(later)
        pairs = frames.shape[1] // 2

        def log_ratio(residual_mean: torch.Tensor, gradient_mean: torch.Tensor) -> torch.Tensor:
            ratios = (residual_mean + _RESIDUAL_FLOOR).log() - (gradient_mean + _GRADIENT_FLOOR).log()
            return ratios.unflatten(0, (-1, pairs)).mean(1)

        value = log_ratio(residual.mean((1, 2)), gradient.mean((1, 2)))
        if "places" not in batch.has:
            return value, {}
        regions = region_masks(batch.places(indices)[:, 1::2].flatten(0, 1), (residual.shape[1], residual.shape[2]))
        parts = {
            name: log_ratio(masked_region_mean(residual, mask), masked_region_mean(gradient, mask))
            for name, mask in regions.items()
        }
        return value, parts


def warp_residual(now: torch.Tensor, later: torch.Tensor, flow: np.ndarray) -> torch.Tensor:
    """Return |later − warp(now, flow)| ``[N, H, W]``, averaged over colours.

    Args:
        now: RGB frames ``[N, 3, H, W]``.
        later: the frames that follow them.
        flow: ``[N, H, W, 2]``, the position in ``now`` of every pixel of ``later``, relative to the pixel.
    """
    height, width = now.shape[-2:]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    result = np.empty((len(now), height, width), np.float32)
    for row, (before, after, offset) in enumerate(zip(now.numpy(), later.numpy(), flow, strict=True)):
        picture = np.ascontiguousarray(before.transpose(1, 2, 0))
        warped = cv2.remap(picture, x + offset[..., 0], y + offset[..., 1], cv2.INTER_LINEAR,
                           borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
        result[row] = np.abs(warped.transpose(2, 0, 1) - after).mean(0)
    return torch.from_numpy(result)


def _gradient(frames: torch.Tensor) -> torch.Tensor:
    """Return |∂x| + |∂y| of the mean colour ``[N, H, W]``."""
    grey = frames.mean(1)
    across = F.pad(grey.diff(dim=2).abs(), (0, 1))
    return across + F.pad(grey.diff(dim=1).abs(), (0, 0, 0, 1))


# --- Sharpness ---

SHARPNESS_REGIONS = ("mouth", "eyes")
"""Regions of which the sharpness is measured."""
_BLUR = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
_FLOOR = 1e-6


@dataclass(frozen=True)
class SharpnessReward:
    """Rewards fine detail of mouth and eyes, as much as real motion rendered from the portrait has.

        s = ln ( mean |∇ I|² / mean |∇ (G ∗ I)|² )
        sharpness = mean over regions of − softplus( −(s − s_photo − μ) / d )

    G is a small Gaussian blur. The ratio of fine to coarse gradients does not depend on contrast or light. Without a
    portrait s is compared with real footage. More sharpness than real is hardly rewarded. It uses four frames.
    """

    real: Mapping[str, RealStatistic] = field(default_factory=real_statistics)
    noise: float = 0.0
    name: str = "sharpness"
    needs: frozenset[str] = frozenset({"frames", "places"})

    @classmethod
    def load(cls) -> SharpnessReward:
        """Return the reward with its shipped statistics."""
        return cls(noise=measurement_noises().get("sharpness", 0.0))

    def __call__(self, batch: RewardBatch) -> Score:
        z = {name: self.real[f"{name}/{batch.domain}"].z(value) for name, value in self.measure(batch).items()}
        regions = {name.split("/")[1]: -F.softplus(-value) for name, value in z.items()}
        return all_valid(torch.stack(list(regions.values())).mean(0))._replace(regions=regions)

    def measure(self, batch: RewardBatch) -> dict[str, torch.Tensor]:
        """Return s − s_photo ``[B]``, or s without portraits, of every region under the name of its statistics."""
        indices = frame_pair_indices(batch.motion.shape[1])
        frames = batch.frames(indices)
        by_frame = measure_sharpness(frames.flatten(0, 1), batch.places(indices).flatten(0, 1))
        clips = {name: value.unflatten(0, frames.shape[:2]).mean(1) for name, value in by_frame.items()}
        if batch.portraits is None:
            return {f"sharpness/{name}/alone": value for name, value in clips.items()}
        people = {id(portrait): portrait for portrait in batch.portraits}
        photos = {key: resize_portrait(portrait, frames.shape[-1]) for key, portrait in people.items()}
        photo = {key: measure_sharpness(picture[None], points[None]) for key, (picture, points) in photos.items()}
        return {
            f"sharpness/{name}/photo": value - torch.cat([photo[id(portrait)][name] for portrait in batch.portraits])
            for name, value in clips.items()
        }


def measure_sharpness(frames: torch.Tensor, places: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return s ``[N]`` of mouth and eyes in frames ``[N, 3, H, W]`` with landmarks ``[N, 478, 2]`` in pixels."""
    grey = frames.mean(1)
    regions = region_masks(places, (grey.shape[1], grey.shape[2]))
    fine, coarse = _gradient_power(grey), _gradient_power(_blur(grey))
    return {
        name: (masked_region_mean(fine, regions[name]) + _FLOOR).log()
        - (masked_region_mean(coarse, regions[name]) + _FLOOR).log()
        for name in SHARPNESS_REGIONS
    }


def _gradient_power(grey: torch.Tensor) -> torch.Tensor:
    """Return |∂x|² + |∂y|² ``[N, H, W]``."""
    across, down = grey.diff(dim=2).square(), grey.diff(dim=1).square()
    return F.pad(across, (0, 1)) + F.pad(down, (0, 0, 0, 1))


def _blur(grey: torch.Tensor) -> torch.Tensor:
    padded = F.pad(grey[:, None], (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(padded, _BLUR.view(1, 1, 1, 5)), _BLUR.view(1, 1, 5, 1))[:, 0]
