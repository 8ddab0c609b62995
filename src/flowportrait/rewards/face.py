"""Rewards of one face in pictures: identity and realness, and the face network behind them.

A portrait as large as the frames it is compared with.

Pictures compared, and which pictures of a clip are looked at.

A face network that ships: whose face is this (1024 numbers), and what does it look like on the way there.

    128 × 128 face ─► 64 × 64² ─► 128 × 32² ─► 256 × 16² ─► 512 × 8² ─► 1024 × 4² ─► mean: embedding [1024], |e| = 1

MobileNet (Howard et al., 1704.04861) trained on VGGFace2 by A. Savchenko (1807.07718), 3.2 million weights, batch norm
folded in. It learned from celebrities' photos and from nobody here. Reward side only: the evaluation uses another one.

What a face's pixels are like, whatever the face does: texture, colour, and what a face network's first layer sees.

    x = [ natural-scene statistics at two scales (20) · gradient (1) · chroma (4) · mean response of 64 filters ]

The first two families are those of BRISQUE and NIQE (Mittal 2012, 2013) on normalised luminance
n = (I − μ) / (σ + c): its power, the weight of its tails, and products of neighbours in four directions.

Identity: is it still the person of the portrait?

    identity = mean over frames of cos( e(frame), e(portrait) ),   e: the reward side's face network

As a lone reward it teaches a generator to paste the photo; weigh it beside expressiveness and cap it where real clips
of one person lie (``--set credit.caps.identity=0.9``).

Face realness: how usual the statistics of a face's pixels are, for a real face and for this one.

    alone        m = ln ( (x − x̄)ᵀ Σ⁻¹ (x − x̄) / D )         x: ``face_statistics`` of a frame
    with photo   m = ln ( (x − x_photo)ᵀ S⁻¹ (x − x_photo) / D )
    realness = − softplus( (m − μ) / d )

Σ is the covariance among real faces, S the mean square of how real frames differ from a photo of the same person, both
from training speakers. It is a small and honest density, no detector of fakes: it notices pictures that no camera makes
(blurred, over-sharpened, tinted, torn), not a well-made stranger. Wherever there is a portrait the second form is used:
a painting may talk, and a portrait sharper than television does not get more real by blurring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from flowportrait.devices import device_of, once_per_device, place, read_weights
from flowportrait.files import write_weights
from flowportrait.media.crop import to_canonical
from flowportrait.media.portrait import Portrait
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import FOLDER, Normal, Score, all_valid, noises, normals


def shrunk(portrait: Portrait, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The portrait's crop ``[3, side, side]`` in [0, 1] and its landmarks ``[478, 2]`` there."""
    picture = cv2.resize(portrait.crop, (side, side), interpolation=cv2.INTER_AREA)
    points = scaled(portrait.landmarks[:, :2], side / portrait.crop.shape[0])
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 255, torch.from_numpy(points).float()


def scaled(points: np.ndarray, scale: float) -> np.ndarray:
    """Points in pixels of a picture ``scale`` times as large; pixel centres, not corners, carry integers."""
    return points * scale + 0.5 * (scale - 1)


PAIRS = 2
_SSIM_WINDOW = 7


def pair_indices(frames: int) -> tuple[int, ...]:
    """Consecutive frame pairs spread over a clip: (i, i+1, j, j+1, …)."""
    starts = np.linspace(frames * 0.1, frames - 2, PAIRS).astype(int)
    return tuple(int(start) + step for start in starts for step in (0, 1))


def structural_similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean SSIM (Wang 2004, 7 x 7 uniform windows, luma) of pictures ``[..., 3, H, W]`` in [0, 1].

    Pooling does it in a fiftieth of the time of a Gaussian convolution, which a reward pays every iteration.
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


SIDE = 128
"""Pixels of the aligned face. Trained at 224; at 128 unseen speakers are told apart nearly as well in a third of the
time (``benchmarks/rewards.py identity``)."""
WIDTH, CENTRE = 2.0, (0.0, 0.45)
"""Width and middle of the aligned face in outer-eye-corner distances."""

_LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""Channels and stride of the pairs of depthwise and pointwise convolutions."""
_MEAN = (103.939, 116.779, 123.68)
_MAPS = (0, 2, 4)
AT_ONCE = 8
"""Faces per pass: more of them leave the processor's cache, which costs twice the time."""


class FaceNet(nn.Module):
    """Aligned faces to embeddings and feature maps."""

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
        """Unit embeddings ``[N, 1024]`` of aligned RGB faces ``[N, 3, 128, 128]`` in [0, 1]."""
        pooled = [self._walk(part, len(self.pairs))[-1].mean((2, 3)) for part in faces.split(AT_ONCE)]
        return F.normalize(torch.cat(pooled), dim=-1)

    def features(self, faces: torch.Tensor) -> list[torch.Tensor]:
        """Maps with 64, 128 and 256 channels at a half, a quarter and an eighth of the faces' side."""
        parts = [self._walk(part, max(_MAPS) + 1) for part in faces.split(AT_ONCE)]
        return [torch.cat([maps[index] for maps in parts]) for index in _MAPS]

    def _walk(self, faces: torch.Tensor, depth: int) -> list[torch.Tensor]:
        faces = faces.to(device_of(self))
        x = faces.flip(1) * 255 - faces.new_tensor(_MEAN)[:, None, None]
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        maps = []
        for pair in self.pairs[:depth]:
            x = pair(x)
            maps.append(x)
        return maps

    @classmethod
    @once_per_device
    def load(cls) -> FaceNet:
        """The network that ships with the package, frozen."""
        net = cls()
        path = Path(str(files("flowportrait") / "weights" / "face_net" / "model.safetensors"))
        net.load_state_dict(read_weights(path))
        for layer in net.layers():
            # A third faster on a CPU than rows of pixels.
            layer.weight.data = layer.weight.contiguous(memory_format=torch.channels_last)
        return place(net.eval().requires_grad_(False))

    def layers(self) -> list[nn.Conv2d]:
        """Its convolutions in the order they are applied."""
        return [part for part in self.modules() if isinstance(part, nn.Conv2d)]

    def save(self, path: Path) -> None:
        """Write float16 safetensors under a temporary name first."""
        write_weights(path, self.state_dict())


class _Layer(nn.Conv2d):
    """A convolution whose output is its input's size over the stride, padded at the far side first."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(before, after, kernel, stride, 0, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spare = max(self.kernel_size[0] - self.stride[0], 0)
        if spare:
            x = F.pad(x, (spare // 2, spare - spare // 2) * 2)
        return super().forward(x).clamp(0, 6)


def align(frames: torch.Tensor, places: torch.Tensor, side: int = SIDE) -> torch.Tensor:
    """Aligned faces ``[N, 3, side, side]`` from frames ``[N, 3, H, W]`` in [0, 1] and landmarks ``[N, 478, 2]`` px."""
    result = np.empty((len(frames), side, side, 3), np.float32)
    for row, (frame, points) in enumerate(zip(frames.numpy(), places.numpy(), strict=True)):
        matrix = to_canonical(points) * (side / WIDTH)
        matrix[:, 2] += side / 2 - np.array(CENTRE) * side / WIDTH
        picture = np.ascontiguousarray(frame.transpose(1, 2, 0))
        result[row] = cv2.warpAffine(picture, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)
    return torch.from_numpy(result).permute(0, 3, 1, 2)


STATISTICS_SIDE = 96
"""Pixels of the aligned face these are measured on."""
PLAIN = 25
"""Statistics before the network's."""
SIZE = PLAIN + 64

_C = 1 / 255
_TAP = torch.exp(-0.5 * (torch.arange(-3, 4) / (7 / 6)) ** 2)
_WINDOW = _TAP / _TAP.sum()
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


@torch.no_grad()
def face_statistics(faces: torch.Tensor) -> torch.Tensor:
    """``[N, 89]`` of aligned RGB faces ``[N, 3, 96, 96]`` in [0, 1]."""
    grey = faces.mean(1, keepdim=True)
    across, down = grey.diff(dim=3).abs().mean((1, 2, 3)), grey.diff(dim=2).abs().mean((1, 2, 3))
    plain = [*_natural(grey), *_natural(F.avg_pool2d(grey, 2)), (across + down + 1e-4).log(), *_chroma(faces)]
    first = [FaceNet.load().features(part)[0].mean((2, 3)) for part in faces.split(AT_ONCE)]
    return torch.cat([torch.stack(plain, 1), torch.cat(first)], 1)


def _natural(grey: torch.Tensor) -> list[torch.Tensor]:
    mean = _smooth(grey)
    deviation = (_smooth(grey * grey) - mean * mean).clamp_min(0).sqrt()
    normal = (grey - mean) / (deviation + _C)
    power = normal.square().mean((1, 2, 3))
    found = [power.clamp_min(1e-6).log(), normal.abs().mean((1, 2, 3)).square() / power.clamp_min(1e-6)]
    for y, x in _NEIGHBOURS:
        product = normal * normal.roll((y, x), (2, 3))
        found += [product.mean((1, 2, 3)), product.abs().mean((1, 2, 3)).clamp_min(1e-6).log()]
    return found


def _chroma(faces: torch.Tensor) -> list[torch.Tensor]:
    red, green, blue = faces.unbind(1)
    bright = faces.mean((1, 2, 3)).clamp_min(0.02)
    found = []
    for opponent in (red - green, (red + green) / 2 - blue):
        found += [opponent.mean((1, 2)) / bright, (opponent.std((1, 2)) / bright + 1e-3).log()]
    return found


def _smooth(picture: torch.Tensor) -> torch.Tensor:
    padded = F.pad(picture, (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(padded, _WINDOW.view(1, 1, 1, 7)), _WINDOW.view(1, 1, 7, 1))


@dataclass(frozen=True)
class Identity:
    """Likeness of two frames of the clip to the portrait."""

    noise: float = 0.0
    name: str = "identity"
    needs: frozenset[str] = frozenset({"frames", "places", "portrait"})
    range: tuple[float, float] = (-1.0, 1.0)

    @classmethod
    def load(cls) -> Identity:
        """With its measured noise."""
        return cls(noises().get("identity", 0.0))

    @torch.no_grad()
    def __call__(self, batch: RewardBatch) -> Score:
        assert batch.portraits is not None
        net, indices = FaceNet.load(), pair_indices(batch.motion.shape[1])[1::2]
        frames = batch.frames(indices)
        faces = align(frames.flatten(0, 1), batch.places(indices).flatten(0, 1))
        seen = net(faces).cpu().unflatten(0, frames.shape[:2])
        people = {id(portrait): portrait for portrait in batch.portraits}
        own = {key: _embedding(*shrunk(portrait, frames.shape[-1])) for key, portrait in people.items()}
        wanted = torch.stack([own[id(portrait)] for portrait in batch.portraits])
        return all_valid((seen * wanted[:, None]).sum(-1).mean(1))


def _embedding(picture: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    return FaceNet.load()(align(picture[None], points[None]))[0].cpu()


MODES = 16
"""Principal directions of the filters' responses that take part."""
SHRINKAGE = 0.1
"""Share of its diagonal that replaces the covariance: speakers are few."""


@dataclass(frozen=True)
class FaceDensity:
    """mean and spread ``[89]``; modes ``[89, D]`` of the standardised statistics; centre ``[D]``; Σ⁻¹ and S⁻¹
    ``[D, D]``."""

    mean: torch.Tensor
    spread: torch.Tensor
    modes: torch.Tensor
    centre: torch.Tensor
    among: torch.Tensor
    apart: torch.Tensor

    def describe(self, faces: torch.Tensor) -> torch.Tensor:
        """x ``[N, D]`` of aligned faces ``[N, 3, 96, 96]``."""
        return (face_statistics(faces) - self.mean) / self.spread @ self.modes

    def unusual(self, x: torch.Tensor, photo: torch.Tensor | None = None) -> torch.Tensor:
        """m ``[N]`` of descriptions ``[N, D]``, alone or against their photos' ``[N, D]``; about 0 for real ones."""
        away, precision = (x - self.centre, self.among) if photo is None else (x - photo, self.apart)
        return ((away @ precision * away).sum(1) / len(self.centre) + 1e-6).log()

    @classmethod
    def fit(cls, statistics: torch.Tensor, photos: torch.Tensor) -> FaceDensity:
        """From real faces' statistics ``[N, 89]`` and those of a photo of each, speakers in equal numbers."""
        mean, spread = statistics.mean(0), statistics.std(0).clamp_min(1e-4)
        standard = (statistics - mean) / spread
        learned = torch.linalg.svd(standard[:, PLAIN:], full_matrices=False).Vh[:MODES].T
        modes = torch.block_diag(torch.eye(PLAIN), learned)
        x, away = standard @ modes, (statistics - photos) / spread @ modes
        return cls(mean, spread, modes, x.mean(0), _inverse(torch.cov(x.T)), _inverse(away.T @ away / len(away)))

    def save(self, path: Path) -> None:
        """As safetensors."""
        save_file({name: value.contiguous() for name, value in vars(self).items()}, str(path))

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls) -> FaceDensity:
        """The density that ships."""
        return cls(**load_file(str(FOLDER / "face_density.safetensors")))


@dataclass(frozen=True)
class Realness:
    """Two frames of a clip against real faces."""

    density: FaceDensity
    real: Mapping[str, Normal] = field(default_factory=normals)
    noise: float = 0.0
    name: str = "realness"
    needs: frozenset[str] = frozenset({"frames", "places"})

    @classmethod
    def load(cls) -> Realness:
        """With the density that ships."""
        return cls(FaceDensity.load(), noise=noises().get("realness", 0.0))

    def __call__(self, batch: RewardBatch) -> Score:
        ((name, value),) = self.measure(batch).items()
        return all_valid(-F.softplus(self.real[f"{name}/{batch.domain}"].z(value)))

    def measure(self, batch: RewardBatch) -> dict[str, torch.Tensor]:
        """m ``[B]``, of two frames."""
        indices = pair_indices(batch.motion.shape[1])[1::2]
        frames = batch.frames(indices)
        faces = align(frames.flatten(0, 1), batch.places(indices).flatten(0, 1), STATISTICS_SIDE)
        x = self.density.describe(faces)
        if batch.portraits is None:
            return {"realness/alone": self.density.unusual(x).unflatten(0, frames.shape[:2]).mean(1)}
        people = {id(portrait): portrait for portrait in batch.portraits}
        own = {key: self.photo(portrait, frames.shape[-1]) for key, portrait in people.items()}
        photos = torch.stack([own[id(portrait)] for portrait in batch.portraits])
        away = self.density.unusual(x, photos.repeat_interleave(frames.shape[1], 0))
        return {"realness/photo": away.unflatten(0, frames.shape[:2]).mean(1)}

    def photo(self, portrait: Portrait, side: int) -> torch.Tensor:
        """Description ``[D]`` of a portrait drawn as large as the frames."""
        return self.density.describe(photo_face(portrait, side))[0]


def photo_face(portrait: Portrait, side: int) -> torch.Tensor:
    """The aligned face ``[1, 3, 96, 96]`` of a portrait drawn ``side`` pixels large."""
    picture, points = shrunk(portrait, side)
    return align(picture[None], points[None], STATISTICS_SIDE)


def _inverse(covariance: torch.Tensor) -> torch.Tensor:
    return torch.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * torch.diag(covariance.diagonal()))
