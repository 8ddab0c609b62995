"""This module defines two rewards of a face in pictures, identity and realness, and the face network behind them.

The parts, in order: comparison of pictures, the face network and face alignment, statistics of the pixels of a face,
the identity reward, and the realness reward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from flowportrait.devices import cached_per_device, device_of, place_network, read_weights
from flowportrait.files import shipped_weights, write_weights
from flowportrait.media.crop import canonical_transform
from flowportrait.media.portrait import Portrait
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import (
    RealStatistic,
    Score,
    all_valid,
    measurement_noises,
    real_statistics,
)

# --- Comparison of pictures ---


def resize_portrait(portrait: Portrait, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a portrait's crop resized to ``[3, side, side]`` in [0, 1] and its landmarks ``[478, 2]`` there."""
    picture = cv2.resize(portrait.crop, (side, side), interpolation=cv2.INTER_AREA)
    points = scale_points(portrait.landmarks[:, :2], side / portrait.crop.shape[0])
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 255, torch.from_numpy(points).float()


def scale_points(points: np.ndarray, scale: float) -> np.ndarray:
    """Return points in pixels of a picture resized by ``scale``. Integer coordinates are the centres of pixels."""
    return points * scale + 0.5 * (scale - 1)


FRAME_PAIRS = 2
"""Pairs of neighbouring frames that are compared in a clip."""
_SSIM_WINDOW = 7


def frame_pair_indices(frames: int) -> tuple[int, ...]:
    """Return the indices (i, i+1, j, j+1, …) of pairs of neighbouring frames, spread over a clip."""
    starts = np.linspace(frames * 0.1, frames - 2, FRAME_PAIRS).astype(int)
    return tuple(int(start) + step for start in starts for step in (0, 1))


def structural_similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the mean structural similarity ``[...]`` of pictures ``[..., 3, H, W]`` in [0, 1] (SSIM, Wang 2004).

    It uses 7 × 7 uniform windows on the mean colour. Pooling takes a fiftieth of the time of the usual Gaussian
    convolution, which matters in a reward.
    """
    x, y = (picture.mean(-3).flatten(0, -3)[:, None] for picture in (a, b))

    def local(values: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(values, _SSIM_WINDOW, stride=2)

    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
    contrast = (2 * covariance + 9e-4) / (var_x + var_y + 9e-4)
    return (luminance * contrast).mean((1, 2, 3)).reshape(a.shape[:-3])


# --- The face network ---
#
#     128 × 128 face ─► 64 × 64² ─► 128 × 32² ─► 256 × 16² ─► 512 × 8² ─► 1024 × 4² ─► mean: embedding [1024], |e| = 1
#
# MobileNet (Howard et al., 1704.04861), trained on VGGFace2 by A. Savchenko (1807.07718), with 3.2 million weights and
# folded batch norms. It was trained on photos of celebrities, and on none of the speakers of this package. Only rewards
# use it; the evaluation uses another network.

FACE_SIDE = 128
"""Side in pixels of the aligned face. The network was trained at 224; at 128 it distinguishes unseen speakers nearly as
well in a third of the time (``python -m benchmarks reward-matrix --part people``)."""
FACE_WIDTH, FACE_CENTRE = 2.0, (0.0, 0.45)
"""Width and centre of the aligned face in outer-eye-corner distances."""

_LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""Channels and stride of the pairs of depthwise and pointwise convolutions."""
_MEAN = (103.939, 116.779, 123.68)
_MAPS = (0, 2, 4)
"""Pairs of convolutions of which ``features`` returns the output."""
FACES_PER_PASS = 8
"""Faces per forward pass. More of them do not fit into the processor's cache, which doubles the time per face."""


class FaceNet(nn.Module):
    """The face network, which maps aligned faces to embeddings and feature maps."""

    DIM = 1024

    def __init__(self) -> None:
        super().__init__()
        before = 32
        self.stem, self.pairs = _Layer(3, before, 3, 2), nn.ModuleList()
        for after, stride in _LAYERS:
            # Depthwise, then pointwise.
            pair = (_Layer(before, before, 3, stride, before), _Layer(before, after, 1))
            self.pairs.append(nn.Sequential(*pair))
            before = after

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        """Return unit embeddings ``[N, 1024]`` of aligned RGB faces ``[N, 3, 128, 128]`` in [0, 1]."""
        pooled = [self._feature_maps(part, len(self.pairs))[-1].mean((2, 3)) for part in faces.split(FACES_PER_PASS)]
        return F.normalize(torch.cat(pooled), dim=-1)

    def features(self, faces: torch.Tensor) -> list[torch.Tensor]:
        """Return feature maps with 64, 128 and 256 channels at a half, a quarter and an eighth of the faces' side."""
        parts = [self._feature_maps(part, max(_MAPS) + 1) for part in faces.split(FACES_PER_PASS)]
        return [torch.cat([maps[index] for maps in parts]) for index in _MAPS]

    def _feature_maps(self, faces: torch.Tensor, depth: int) -> list[torch.Tensor]:
        """Return the outputs of the first ``depth`` pairs of convolutions."""
        faces = faces.to(device_of(self))
        x = faces.flip(1) * 255 - faces.new_tensor(_MEAN)[:, None, None]
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        maps = []
        for pair in self.pairs[:depth]:
            x = pair(x)
            maps.append(x)
        return maps

    @classmethod
    @cached_per_device
    def load(cls) -> FaceNet:
        """Return the network that ships with the package, frozen."""
        net = cls()
        path = shipped_weights("face_net/model.safetensors")
        net.load_state_dict(read_weights(path))
        for layer in net.layers():
            # A third faster on a CPU than channels first.
            layer.weight.data = layer.weight.contiguous(memory_format=torch.channels_last)
        return place_network(net.eval().requires_grad_(False))

    def layers(self) -> list[nn.Conv2d]:
        """Return the convolutions in the order in which they are applied."""
        return [part for part in self.modules() if isinstance(part, nn.Conv2d)]

    def save(self, path: Path) -> None:
        """Write the weights as float16 safetensors, atomically."""
        write_weights(path, self.state_dict())


class _Layer(nn.Conv2d):
    """A convolution with ReLU6. Its output has the size of the input divided by the stride; padding goes to the end."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(before, after, kernel, stride, 0, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spare = max(self.kernel_size[0] - self.stride[0], 0)
        if spare:
            x = F.pad(x, (spare // 2, spare - spare // 2) * 2)
        return super().forward(x).clamp(0, 6)


def align_faces(frames: torch.Tensor, places: torch.Tensor, side: int = FACE_SIDE) -> torch.Tensor:
    """Return aligned faces ``[N, 3, side, side]``.

    Args:
        frames: ``[N, 3, H, W]`` in [0, 1].
        places: landmarks ``[N, 478, 2]`` in pixels.
        side: side of the faces in pixels.
    """
    result = np.empty((len(frames), side, side, 3), np.float32)
    for row, (frame, points) in enumerate(zip(frames.numpy(), places.numpy(), strict=True)):
        matrix = canonical_transform(points) * (side / FACE_WIDTH)
        matrix[:, 2] += side / 2 - np.array(FACE_CENTRE) * side / FACE_WIDTH
        picture = np.ascontiguousarray(frame.transpose(1, 2, 0))
        result[row] = cv2.warpAffine(picture, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)
    return torch.from_numpy(result).permute(0, 3, 1, 2)


# --- Statistics of the pixels of a face ---
#
#     x = [ natural-scene statistics at two scales (20) · gradient (1) · chroma (4) · mean response of 64 filters ]
#
# They describe texture and colour, independent of what the face does. The first family is that of BRISQUE and NIQE
# (Mittal 2012, 2013) on normalised luminance n = (I − μ) / (σ + c): its power, the weight of its tails, and products of
# neighbours in four directions. The filters are the first layer of the face network.

STATISTICS_SIDE = 96
"""Side in pixels of the aligned face on which the statistics are measured."""
PIXEL_STATISTICS = 25
"""Number of statistics without those of the face network."""
STATISTICS_COUNT = PIXEL_STATISTICS + 64
"""Number of all statistics."""

_C = 1 / 255
_TAP = torch.exp(-0.5 * (torch.arange(-3, 4) / (7 / 6)) ** 2)
_WINDOW = _TAP / _TAP.sum()
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


@torch.no_grad()
def face_statistics(faces: torch.Tensor) -> torch.Tensor:
    """Return the statistics ``[N, 89]`` of aligned RGB faces ``[N, 3, 96, 96]`` in [0, 1]."""
    grey = faces.mean(1, keepdim=True)
    across, down = grey.diff(dim=3).abs().mean((1, 2, 3)), grey.diff(dim=2).abs().mean((1, 2, 3))
    scene = [*_scene_statistics(grey), *_scene_statistics(F.avg_pool2d(grey, 2))]
    plain = [*scene, (across + down + 1e-4).log(), *_chroma_statistics(faces)]
    filters = [FaceNet.load().features(part)[0].mean((2, 3)) for part in faces.split(FACES_PER_PASS)]
    return torch.cat([torch.stack(plain, 1), torch.cat(filters)], 1)


def _scene_statistics(grey: torch.Tensor) -> list[torch.Tensor]:
    """Return the ten natural-scene statistics ``[N]`` each of pictures ``[N, 1, H, W]``."""
    mean = _smooth(grey)
    deviation = (_smooth(grey * grey) - mean * mean).clamp_min(0).sqrt()
    normal = (grey - mean) / (deviation + _C)
    power = normal.square().mean((1, 2, 3))
    statistics = [power.clamp_min(1e-6).log(), normal.abs().mean((1, 2, 3)).square() / power.clamp_min(1e-6)]
    for y, x in _NEIGHBOURS:
        product = normal * normal.roll((y, x), (2, 3))
        statistics += [product.mean((1, 2, 3)), product.abs().mean((1, 2, 3)).clamp_min(1e-6).log()]
    return statistics


def _chroma_statistics(faces: torch.Tensor) -> list[torch.Tensor]:
    """Return mean and log deviation ``[N]`` of both opponent colours, relative to the brightness."""
    red, green, blue = faces.unbind(1)
    brightness = faces.mean((1, 2, 3)).clamp_min(0.02)
    statistics = []
    for opponent in (red - green, (red + green) / 2 - blue):
        statistics += [opponent.mean((1, 2)) / brightness, (opponent.std((1, 2)) / brightness + 1e-3).log()]
    return statistics


def _smooth(picture: torch.Tensor) -> torch.Tensor:
    """Return pictures ``[N, 1, H, W]`` convolved with a 7 × 7 Gaussian."""
    padded = F.pad(picture, (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(padded, _WINDOW.view(1, 1, 1, 7)), _WINDOW.view(1, 1, 7, 1))


# --- Identity ---


@dataclass(frozen=True)
class IdentityReward:
    """Rewards similarity of the face in two frames to the face in the portrait.

        identity = mean over frames of cos( e(frame), e(portrait) ),   e: embedding of ``FaceNet``

    As the only reward it teaches a generator to copy the photo. Combine it with expressiveness, and cap it at the value
    of real clips of one person (``--set credit.caps.identity=0.9``).
    """

    noise: float = 0.0
    name: str = "identity"
    needs: frozenset[str] = frozenset({"frames", "places", "portrait"})
    range: tuple[float, float] = (-1.0, 1.0)

    @classmethod
    def load(cls) -> IdentityReward:
        """Return the reward with its measurement noise."""
        return cls(measurement_noises().get("identity", 0.0))

    @torch.no_grad()
    def __call__(self, batch: RewardBatch) -> Score:
        assert batch.portraits is not None
        net, indices = FaceNet.load(), frame_pair_indices(batch.motion.shape[1])[1::2]
        frames = batch.frames(indices)
        faces = align_faces(frames.flatten(0, 1), batch.places(indices).flatten(0, 1))
        embeddings = net(faces).cpu().unflatten(0, frames.shape[:2])
        people = {id(portrait): portrait for portrait in batch.portraits}
        by_person = {key: _embedding(*resize_portrait(portrait, frames.shape[-1])) for key, portrait in people.items()}
        references = torch.stack([by_person[id(portrait)] for portrait in batch.portraits])
        return all_valid((embeddings * references[:, None]).sum(-1).mean(1))


def _embedding(picture: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return the embedding ``[1024]`` of the face in a picture ``[3, H, W]``."""
    return FaceNet.load()(align_faces(picture[None], points[None]))[0].cpu()


# --- Realness ---

FILTER_DIRECTIONS = 16
"""Number of principal directions of the filters' responses that are used."""
SHRINKAGE = 0.1
"""Weight of the diagonal in the shrunk covariance, since there are few speakers."""


@dataclass(frozen=True)
class FaceDensity:
    """A Gaussian density of the pixel statistics of real faces.

    Attributes:
        mean: of the statistics ``[89]``.
        spread: their standard deviation ``[89]``.
        modes: directions ``[89, D]`` of the standardised statistics.
        centre: mean ``[D]`` along these directions.
        among: Σ⁻¹ ``[D, D]``, the inverse covariance of real faces.
        apart: S⁻¹ ``[D, D]``, the inverse mean square of differences between real frames and a photo of the same
            person.
    """

    mean: torch.Tensor
    spread: torch.Tensor
    modes: torch.Tensor
    centre: torch.Tensor
    among: torch.Tensor
    apart: torch.Tensor

    def describe(self, faces: torch.Tensor) -> torch.Tensor:
        """Return the description x ``[N, D]`` of aligned faces ``[N, 3, 96, 96]``."""
        return (face_statistics(faces) - self.mean) / self.spread @ self.modes

    def unusual(self, x: torch.Tensor, photo: torch.Tensor | None = None) -> torch.Tensor:
        """Return m ``[N]`` of descriptions ``[N, D]``, about 0 for real faces.

        Args:
            x: descriptions of frames.
            photo: descriptions ``[N, D]`` of photos of the same persons. Without them the frames are compared with all
                real faces.
        """
        deviation, precision = (x - self.centre, self.among) if photo is None else (x - photo, self.apart)
        return ((deviation @ precision * deviation).sum(1) / len(self.centre) + 1e-6).log()

    @classmethod
    def fit(cls, statistics: torch.Tensor, photos: torch.Tensor) -> FaceDensity:
        """Fit the density to real faces, with the same number of frames of every speaker.

        Args:
            statistics: of frames ``[N, 89]``.
            photos: statistics ``[N, 89]`` of a photo of the speaker of each frame.
        """
        mean, spread = statistics.mean(0), statistics.std(0).clamp_min(1e-4)
        standard = (statistics - mean) / spread
        principal = torch.linalg.svd(standard[:, PIXEL_STATISTICS:], full_matrices=False).Vh[:FILTER_DIRECTIONS].T
        modes = torch.block_diag(torch.eye(PIXEL_STATISTICS), principal)
        x, difference = standard @ modes, (statistics - photos) / spread @ modes
        squares = difference.T @ difference / len(difference)
        return cls(mean, spread, modes, x.mean(0), _shrunk_inverse(torch.cov(x.T)), _shrunk_inverse(squares))

    def save(self, path: Path) -> None:
        """Write the density as safetensors."""
        save_file({name: value.contiguous() for name, value in vars(self).items()}, str(path))

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls) -> FaceDensity:
        """Return the density that ships with the package."""
        return cls(**load_file(str(shipped_weights("reward/face_density.safetensors"))))


@dataclass(frozen=True)
class RealnessReward:
    """Rewards faces with pixel statistics like those of real faces, or of the photo of the same person.

        without photo   m = ln ( (x − x̄)ᵀ Σ⁻¹ (x − x̄) / D )         x: ``face_statistics`` of a frame
        with photo      m = ln ( (x − x_photo)ᵀ S⁻¹ (x − x_photo) / D )
        realness = − softplus( (m − μ) / d )

    Σ is the covariance of real faces, S the mean square of differences between real frames and a photo of the same
    person, both of training speakers. The density is small and detects no forgeries: it recognises pictures that no
    camera takes (blurred, over-sharpened, tinted, torn), but not a well-made other person. With a portrait the second
    form is used, so that a painting can be animated, and a portrait sharper than television does not gain by blurring.
    It uses two frames.
    """

    density: FaceDensity
    real: Mapping[str, RealStatistic] = field(default_factory=real_statistics)
    noise: float = 0.0
    name: str = "realness"
    needs: frozenset[str] = frozenset({"frames", "places"})

    @classmethod
    def load(cls) -> RealnessReward:
        """Return the reward with the density that ships with the package."""
        return cls(FaceDensity.load(), noise=measurement_noises().get("realness", 0.0))

    def __call__(self, batch: RewardBatch) -> Score:
        ((name, value),) = self.measure(batch).items()
        return all_valid(-F.softplus(self.real[f"{name}/{batch.domain}"].z(value)))

    def measure(self, batch: RewardBatch) -> dict[str, torch.Tensor]:
        """Return m ``[B]``, averaged over two frames, under the name of its statistics."""
        indices = frame_pair_indices(batch.motion.shape[1])[1::2]
        frames = batch.frames(indices)
        faces = align_faces(frames.flatten(0, 1), batch.places(indices).flatten(0, 1), STATISTICS_SIDE)
        x = self.density.describe(faces)
        if batch.portraits is None:
            return {"realness/alone": self.density.unusual(x).unflatten(0, frames.shape[:2]).mean(1)}
        people = {id(portrait): portrait for portrait in batch.portraits}
        by_person = {key: self.photo(portrait, frames.shape[-1]) for key, portrait in people.items()}
        photos = torch.stack([by_person[id(portrait)] for portrait in batch.portraits])
        distance = self.density.unusual(x, photos.repeat_interleave(frames.shape[1], 0))
        return {"realness/photo": distance.unflatten(0, frames.shape[:2]).mean(1)}

    def photo(self, portrait: Portrait, side: int) -> torch.Tensor:
        """Return the description ``[D]`` of a portrait resized to ``side`` pixels."""
        return self.density.describe(aligned_portrait_face(portrait, side))[0]


def aligned_portrait_face(portrait: Portrait, side: int) -> torch.Tensor:
    """Return the aligned face ``[1, 3, 96, 96]`` of a portrait resized to ``side`` pixels."""
    picture, points = resize_portrait(portrait, side)
    return align_faces(picture[None], points[None], STATISTICS_SIDE)


def _shrunk_inverse(covariance: torch.Tensor) -> torch.Tensor:
    """Return the inverse of a covariance matrix that is shrunk towards its diagonal."""
    return torch.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * torch.diag(covariance.diagonal()))
