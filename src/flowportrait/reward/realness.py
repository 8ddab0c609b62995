"""Face realness: how usual the statistics of a face's pixels are, for a real face and for this one.

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
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from flowportrait.media.portrait import Portrait
from flowportrait.reward.batch import RewardBatch
from flowportrait.reward.face_net import align
from flowportrait.reward.face_statistics import PLAIN, SIDE, face_statistics
from flowportrait.reward.interface import Score, all_valid
from flowportrait.reward.photo import shrunk
from flowportrait.reward.pixels import pair_indices
from flowportrait.reward.real import FOLDER, Normal, noises, normals

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
        faces = align(frames.flatten(0, 1), batch.places(indices).flatten(0, 1), SIDE)
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
    return align(picture[None], points[None], SIDE)


def _inverse(covariance: torch.Tensor) -> torch.Tensor:
    return torch.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * torch.diag(covariance.diagonal()))
