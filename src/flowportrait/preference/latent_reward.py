"""A reward of *noisy latents*: sync, expression and motion of a chunk at any noise level, without decoding it.

    past clean chunks ─► causal convolutions ─┐
    last frame before the chunk ──────────────┼─► head(x_σ, σ | ·) ─► mean        (one tower per dimension)
    audio condition now (sync alone) ─────────┘        variance  v(σ) = v₀ + c σ²

    P(first is better) = Φ( (mean_1 − mean_2 − τ) / √(v_1 + v_2) )             (Thurstone, with ties: ``pair_loss``)

A chunk's score depends on the chunk as it is at σ, on ``REACH`` chunks before it and on nothing later, so that it can
steer a live session; it is differentiable in x. The variance grows with the noise as in DiNa-LRM (arXiv 2602.11146).
The towers share nothing: expression and motion never see the sound.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn

from flowportrait.codec.basis import EXPRESSION, LOWER, MOTION_DIM
from flowportrait.devices import Device, once_per_device, place, read_weights
from flowportrait.errors import BadInput
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.audio_encoder import N_LIPS
from flowportrait.generator.chunk_space import ChunkSpace
from flowportrait.generator.flow_head import FlowHead
from flowportrait.preference.dataset import DIMENSIONS
from flowportrait.preference.pair_loss import MARGIN, thurstone_log_probs
from flowportrait.written import write_json, write_weights

KERNEL, DILATIONS = 3, (1, 2)
REACH = 1 + (KERNEL - 1) * sum(DILATIONS)
"""Chunks that a chunk's score looks back on."""
BASE_VARIANCE = 0.5
"""v₀, the variance of one clip's score without noise: the difference of two has variance 1, the unit of training."""


class LatentScores(NamedTuple):
    """Scores of every chunk: mean and log_std ``[B, N, 3]``, in the order of ``DIMENSIONS``."""

    mean: torch.Tensor
    log_std: torch.Tensor

    def clip(self) -> LatentScores:
        """Scores of whole clips ``[B, 3]``: the mean over chunks, with the mean of their variances."""
        return LatentScores(self.mean.mean(1), (2 * self.log_std).exp().mean(1).log() / 2)

    def split(self) -> tuple[LatentScores, LatentScores]:
        """Those of the first half of the batch and of the second, as ``LatentPairBatch.all_clips`` orders clips."""
        (first, second), (log_first, log_second) = self.mean.chunk(2), self.log_std.chunk(2)
        return LatentScores(first, log_first), LatentScores(second, log_second)


@dataclass(frozen=True)
class LatentRewardConfig:
    chunk: int = 4
    heard: int = 576
    """Numbers of a generator's ``Condition.audio`` per chunk."""
    lips: bool = True
    """Whether the last ``chunk · 16`` of them say where the sound puts the lips."""
    width: int = 128
    depth: int = 2


class LatentReward(nn.Module):
    """Scores of noisy latents; see the module for the model.

    ``LatentReward.fresh(generator)`` is untrained, ``load`` trained: then scores are standardised on real clips, 0 is
    ordinary and 1 one standard deviation better.
    """

    centre: torch.Tensor
    spread: torch.Tensor

    def __init__(self, config: LatentRewardConfig) -> None:
        super().__init__()
        self.config = config
        self.space = ChunkSpace(config.chunk)
        lower, expression = _rows(LOWER, config.chunk), _rows(EXPRESSION, config.chunk)
        everything = _rows(slice(0, MOTION_DIM), config.chunk)
        sound = config.heard + config.lips * len(lower)
        self.sync = LatentTower(lower, LOWER, sound, config)
        self.expression = LatentTower(expression, EXPRESSION, 0, config)
        self.motion = LatentTower(everything, slice(0, 0), 0, config)
        self.growth = nn.Parameter(torch.zeros(2, len(DIMENSIONS)))
        """Softplus of it is c: where the past is noisy too, and where it is known."""
        self.register_buffer("centre", torch.zeros(len(DIMENSIONS)))
        self.register_buffer("spread", torch.ones(len(DIMENSIONS)))

    @classmethod
    def fresh(cls, generator: ARFlow, width: int = 128, depth: int = 2) -> LatentReward:
        """Untrained, in the latent space and with the audio condition of ``generator``."""
        own = generator.config
        numbers = own.chunk * (own.audio_width + own.anchor * N_LIPS)
        model = cls(LatentRewardConfig(own.chunk, numbers, own.anchor, width, depth))
        model.space.load_state_dict(generator.space.state_dict())
        return model

    def forward(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor | float,
        audio: torch.Tensor,
        start: torch.Tensor,
        past: torch.Tensor | None = None,
    ) -> LatentScores:
        """Score every chunk.

        Args:
            x: latents ``[B, N, chunk·30]`` at noise level sigma.
            sigma: scalar, ``[B]`` or ``[B, N]``.
            audio: the generator's ``Condition.audio`` ``[B, N, ·]``.
            start: the frame ``[B, 30]`` before the first chunk.
            past: the *clean* latents ``[B, N, chunk·30]`` that chunks follow (chunk i reads those before i alone, the
                last is not read). Without past they are x itself: right at σ = 0, and where a whole clip is noised at
                once.

        A live session gives the last ``REACH + 1`` chunks, past clean ones and the present one, and reads the last.
        """
        x, audio, start = (part.to(self.centre.device) for part in (x, audio, start))
        past = None if past is None else past.to(x.device)
        level = _per_chunk(sigma, x)
        estimate = self.expected_clean(x, level)
        before, before_level = (estimate, level) if past is None else (past, torch.zeros_like(level))
        ends = self.space.decode_track(before, start)[:, :, -1]
        last = torch.cat([start[:, None], ends[:, :-1]], 1)
        mean = torch.stack(
            [
                self.sync(estimate, level, before, before_level, last, self._sound(audio, last)),
                self.expression(estimate, level, before, before_level, last),
                self.motion(estimate, level, before, before_level, last),
            ],
            -1,
        )
        variance = BASE_VARIANCE + self.noise_variance(level, past is not None)
        return LatentScores((mean - self.centre) / self.spread, variance.log() / 2 - self.spread.log())

    def noise_variance(self, level: torch.Tensor, past_is_known: bool) -> torch.Tensor:
        """c σ² ``[…, 3]`` before standardising, for σ ``[…]``."""
        return F.softplus(self.growth[int(past_is_known)]) * level[..., None].square()

    def log_probs(self, first: LatentScores, second: LatentScores) -> torch.Tensor:
        """ln P ``[…, 3, 3]`` per dimension that the first is better, that they tie, that the second is, for scores
        ``[…, 3]``."""
        variance = (2 * first.log_std).exp() + (2 * second.log_std).exp()
        return thurstone_log_probs(first.mean - second.mean, variance, MARGIN / self.spread)

    def standardise(self, scores: torch.Tensor) -> None:
        """Make scores ``[M, 3]`` of real clips, as they are now, the yardstick."""
        self.centre.add_(self.spread * scores.mean(0))
        self.spread.mul_(scores.std(0).clamp_min(1e-3))

    def expected_clean(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """What clean latents of unit variance are to be expected at x: x (1−σ) / ((1−σ)² + σ²)."""
        left = 1 - level
        return x * (left / (left.square() + level.square()))[..., None]

    def _sound(self, audio: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """The audio condition, and the latents that would take the lips to where the sound puts them."""
        if not self.config.lips:
            return audio
        lips = audio[..., -self.config.chunk * N_LIPS :].unflatten(-1, (self.config.chunk, N_LIPS))
        motion = last[..., None, :].repeat(1, 1, self.config.chunk, 1)
        motion[..., LOWER] = lips
        wanted = self.space.encode(motion, last)[..., self.sync.rows]
        return torch.cat([audio, wanted], -1)

    @torch.no_grad()
    def copy_dimension(self, source: LatentReward, dimension: str) -> None:
        """Replace the tower of ``dimension``, its variance and its yardstick by those of ``source``.

        The towers share nothing, so each may come from the training that was best for it.

        Raises:
            BadInput: no such dimension, or towers of another shape.
        """
        if dimension not in DIMENSIONS or self.config != source.config:
            names = ", ".join(DIMENSIONS)
            raise BadInput(f"Cannot take over {dimension}: choose from {names}, with two latent rewards of one shape.")
        self.get_submodule(dimension).load_state_dict(source.get_submodule(dimension).state_dict())
        column = DIMENSIONS.index(dimension)
        for name in ("growth", "centre", "spread"):
            getattr(self, name)[..., column] = getattr(source, name)[..., column]

    def save_pretrained(self, folder: Path) -> None:
        """Write ``config.json`` and float16 ``model.safetensors``; each file appears only when complete."""
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder / "model.safetensors", self.state_dict())
        write_json(folder / "config.json", asdict(self.config), indent=2)

    @classmethod
    def from_pretrained(
        cls, folder: Path, device: Device | None = None, dtype: torch.dtype | None = None
    ) -> LatentReward:
        """Load what ``save_pretrained`` wrote, ready to score, placed as ``devices.place`` does.

        Raises:
            BadInput: the folder holds no latent reward, or one of another shape.
        """
        try:
            model = cls(LatentRewardConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8"))))
            model.load_state_dict(read_weights(folder / "model.safetensors"))
        except OSError as error:
            raise BadInput(f"No latent reward in {folder}: it needs config.json and model.safetensors.") from error
        except (TypeError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(f"The latent reward in {folder} does not fit this version: {reason}") from error
        return place(model.eval().requires_grad_(False), device, dtype)

    @classmethod
    @once_per_device
    def load(cls) -> LatentReward:
        """The one that ships with the package."""
        return cls.from_pretrained(Path(str(files("flowportrait") / "weights" / "latent_reward")))


class LatentTower(nn.Module):
    """One dimension.

    It reads the latents ``rows`` of a chunk, the numbers ``place`` of the frame before it, and ``sound`` numbers of the
    audio condition per chunk.
    """

    rows: torch.Tensor

    def __init__(self, rows: list[int], place: slice, sound: int, config: LatentRewardConfig) -> None:
        super().__init__()
        self.register_buffer("rows", torch.tensor(rows), persistent=False)
        self.place = place
        width, placed = config.width, place.stop - place.start
        self.listen = nn.Linear(sound, width) if sound else None
        self.remember = nn.Linear(len(rows) + 1 + placed + width * bool(sound), width)
        self.look_back = nn.ModuleList(nn.Conv1d(width, width, KERNEL, dilation=d) for d in DILATIONS)
        self.head = FlowHead(len(rows), width + placed + width * bool(sound), width, config.depth)
        self.head.write = nn.Linear(width, 1)

    def forward(
        self,
        estimate: torch.Tensor,
        level: torch.Tensor,
        before: torch.Tensor,
        before_level: torch.Tensor,
        last: torch.Tensor,
        sound: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Score of every chunk ``[B, N]``."""
        known = [last[..., self.place]]
        if self.listen is not None and sound is not None:
            known.append(F.silu(self.listen(sound)))
        summary = self.remember(torch.cat([before[..., self.rows], before_level[..., None], *known], -1))
        # One chunk later: a chunk's memory ends with the chunk before it.
        memory = F.pad(summary.mT, (1, -1))
        for layer, dilation in zip(self.look_back, DILATIONS, strict=True):
            memory = memory + F.silu(layer(F.pad(memory, ((KERNEL - 1) * dilation, 0))))
        return self.head(estimate[..., self.rows], level, torch.cat([memory.mT, *known], -1))[..., 0]


def _rows(span: slice, chunk: int) -> list[int]:
    """Where a span of the motion numbers lies in a chunk's latents."""
    return list(range(span.start * chunk, span.stop * chunk))


def _per_chunk(sigma: torch.Tensor | float, x: torch.Tensor) -> torch.Tensor:
    """σ as ``[B, N]``."""
    level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    return (level[:, None] if level.dim() == 1 else level).expand(x.shape[:2])
