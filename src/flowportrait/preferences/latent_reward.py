"""A reward model of noisy latents, for guidance and pruning, and its training.

It scores sync, expression and motion of a chunk at any noise level, without decoding it:

    past clean chunks ─► causal convolutions ─┐
    last frame before the chunk ──────────────┼─► head(x_σ, σ | ·) ─► mean        (one tower per dimension)
    audio condition now (sync alone) ─────────┘        variance  v(σ) = v₀ + c σ²

    P(first is better) = Φ( (mean_1 − mean_2 − τ) / √(v_1 + v_2) )             (Thurstone, with ties: ``pair_loss``)

A chunk's score depends on the chunk at noise level σ, on ``HISTORY_CHUNKS`` chunks before it and on nothing later, so
it can guide a live session; it is differentiable in x. The variance grows with the noise as in DiNa-LRM (arXiv
2602.11146). The towers share nothing: expression and motion never see the sound. The model comes first, then its
training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn
from torch.nn.functional import cosine_similarity

from flowportrait.corruption import MOTION_CORRUPTIONS
from flowportrait.devices import Device, cached_per_device, place_network, read_weights
from flowportrait.errors import BadInput
from flowportrait.files import shipped_weights, write_json, write_weights
from flowportrait.flow.schedules import interpolate
from flowportrait.models.arflow import ARFlow
from flowportrait.models.backbone import ChunkSpace, FlowHead
from flowportrait.models.speech_encoder import N_LIPS
from flowportrait.preferences.clips import TIE_MARGIN, choice_log_probs, thurstone_log_probs
from flowportrait.preferences.dataset import DIMENSIONS
from flowportrait.preferences.synthetic_pairs import (
    LONG_WINDOW_CHUNKS,
    ConditionedClip,
    LatentPairBatch,
    LatentPairSampler,
)
from flowportrait.rendering.motion_basis import EXPRESSION, LOWER_FACE, MOTION_DIM
from flowportrait.rewards.sync import MotionSyncExpert
from flowportrait.training.optimize import ProgressReport, minimize, report_nothing

# --- Model ---

TOWER_KERNEL, TOWER_DILATIONS = 3, (1, 2)
HISTORY_CHUNKS = 1 + (TOWER_KERNEL - 1) * sum(TOWER_DILATIONS)
"""Number of earlier chunks on which a chunk's score depends."""
BASE_VARIANCE = 0.5
"""v₀, the variance of one clip's score without noise, so that the difference of two scores has variance 1."""


class LatentScores(NamedTuple):
    """Mean and log_std ``[B, N, 3]`` of the score of every chunk, in the order of ``DIMENSIONS``."""

    mean: torch.Tensor
    log_std: torch.Tensor

    def clip(self) -> LatentScores:
        """Return scores of whole clips ``[B, 3]``: the mean over chunks, with the mean of their variances."""
        return LatentScores(self.mean.mean(1), (2 * self.log_std).exp().mean(1).log() / 2)

    def split(self) -> tuple[LatentScores, LatentScores]:
        """Split the batch into first and second clips, as ``LatentPairBatch.all_clips`` orders them."""
        (first, second), (log_first, log_second) = self.mean.chunk(2), self.log_std.chunk(2)
        return LatentScores(first, log_first), LatentScores(second, log_second)


@dataclass(frozen=True)
class LatentRewardConfig:
    """The shape of a latent reward, as its config.json holds it."""

    chunk: int = 4
    """Frames per chunk."""
    audio_width: int = 576
    """Numbers of a generator's ``SpeechCondition.audio`` per chunk; ``heard`` in files of version 0.1."""
    lips: bool = True
    """Whether the last ``chunk · 16`` of them are the lip positions predicted from the sound."""
    width: int = 128
    """Channels of the towers."""
    depth: int = 2
    """Layers of the heads."""


class LatentReward(nn.Module):
    """A reward model of noisy latents with one tower per dimension.

    ``LatentReward.fresh(generator)`` is untrained, ``LatentReward.load()`` is the trained one. Its scores are
    standardised on real clips: 0 is ordinary footage, 1 is one standard deviation better.
    """

    centre: torch.Tensor
    spread: torch.Tensor

    def __init__(self, config: LatentRewardConfig) -> None:
        super().__init__()
        self.config = config
        self.space = ChunkSpace(config.chunk)
        lower, expression = _latent_rows(LOWER_FACE, config.chunk), _latent_rows(EXPRESSION, config.chunk)
        everything = _latent_rows(slice(0, MOTION_DIM), config.chunk)
        sound = config.audio_width + config.lips * len(lower)
        self.sync = LatentTower(lower, LOWER_FACE, sound, config)
        self.expression = LatentTower(expression, EXPRESSION, 0, config)
        self.motion = LatentTower(everything, slice(0, 0), 0, config)
        self.growth = nn.Parameter(torch.zeros(2, len(DIMENSIONS)))
        """Parameter ``[2, 3]`` with c = softplus(growth): with a noisy past, and with a clean past."""
        self.register_buffer("centre", torch.zeros(len(DIMENSIONS)))
        self.register_buffer("spread", torch.ones(len(DIMENSIONS)))

    @classmethod
    def fresh(cls, generator: ARFlow, width: int = 128, depth: int = 2) -> LatentReward:
        """Create an untrained model for the latent space and the audio condition of ``generator``."""
        config = generator.config
        numbers = config.chunk * (config.audio_width + config.anchor * N_LIPS)
        model = cls(LatentRewardConfig(config.chunk, numbers, config.anchor, width, depth))
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
            sigma: noise level: scalar, ``[B]`` or ``[B, N]``.
            audio: the generator's ``SpeechCondition.audio`` ``[B, N, ·]``.
            start: the frame ``[B, 30]`` before the first chunk.
            past: the *clean* latents ``[B, N, chunk·30]`` before the chunks: chunk i reads those before i only, and the
                last one is not read. Without it, x itself is the past, which is right at σ = 0 and if a whole clip is
                noised at once.

        A live session passes the last ``HISTORY_CHUNKS + 1`` chunks, the clean past and the present one; the last score
        counts.
        """
        x, audio, start = (part.to(self.centre.device) for part in (x, audio, start))
        past = None if past is None else past.to(x.device)
        level = _expand_sigma(sigma, x)
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
        """Return c σ² ``[…, 3]`` before standardising, for σ ``[…]``."""
        return F.softplus(self.growth[int(past_is_known)]) * level[..., None].square()

    def log_probs(self, first: LatentScores, second: LatentScores) -> torch.Tensor:
        """Return ln P of first, tie, second ``[…, 3, 3]`` per dimension, for scores ``[…, 3]`` of both clips."""
        variance = (2 * first.log_std).exp() + (2 * second.log_std).exp()
        return thurstone_log_probs(first.mean - second.mean, variance, TIE_MARGIN / self.spread)

    def standardise(self, scores: torch.Tensor) -> None:
        """Set mean and spread of the standardisation from current scores ``[M, 3]`` of real clips."""
        self.centre.add_(self.spread * scores.mean(0))
        self.spread.mul_(scores.std(0).clamp_min(1e-3))

    def expected_clean(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """Return the expected clean latents at x, given unit variance: x (1−σ) / ((1−σ)² + σ²)."""
        signal = 1 - level
        return x * (signal / (signal.square() + level.square()))[..., None]

    def _sound(self, audio: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Append to the audio condition the latents that move the lips to the positions predicted from the sound."""
        if not self.config.lips:
            return audio
        lips = audio[..., -self.config.chunk * N_LIPS :].unflatten(-1, (self.config.chunk, N_LIPS))
        motion = last[..., None, :].repeat(1, 1, self.config.chunk, 1)
        motion[..., LOWER_FACE] = lips
        predicted = self.space.encode(motion, last)[..., self.sync.rows]
        return torch.cat([audio, predicted], -1)

    @torch.no_grad()
    def copy_dimension(self, source: LatentReward, dimension: str) -> None:
        """Replace the tower of ``dimension``, its variance and its standardisation by those of ``source``.

        The towers share nothing, so each can come from the training run that was best for it.

        Raises:
            BadInput: there is no such dimension, or the towers have another shape.
        """
        if dimension not in DIMENSIONS or self.config != source.config:
            names = ", ".join(DIMENSIONS)
            raise BadInput(f"Cannot take over {dimension}: choose from {names}, with two latent rewards of one shape.")
        self.get_submodule(dimension).load_state_dict(source.get_submodule(dimension).state_dict())
        column = DIMENSIONS.index(dimension)
        for name in ("growth", "centre", "spread"):
            getattr(self, name)[..., column] = getattr(source, name)[..., column]

    def save_pretrained(self, folder: Path) -> None:
        """Write ``config.json`` and float16 ``model.safetensors`` into a folder, each atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder / "model.safetensors", self.state_dict())
        write_json(folder / "config.json", asdict(self.config), indent=2)

    @classmethod
    def from_pretrained(
        cls, folder: Path, device: Device | None = None, dtype: torch.dtype | None = None
    ) -> LatentReward:
        """Load a model that ``save_pretrained`` wrote, frozen, on a device and in a number format.

        Raises:
            BadInput: the folder holds no latent reward, or one with another shape.
        """
        try:
            shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if "heard" in shape:
                shape["audio_width"] = shape.pop("heard")
            model = cls(LatentRewardConfig(**shape))
            model.load_state_dict(read_weights(folder / "model.safetensors"))
        except OSError as error:
            raise BadInput(f"No latent reward in {folder}: it needs config.json and model.safetensors.") from error
        except (TypeError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(f"The latent reward in {folder} does not fit this version: {reason}") from error
        return place_network(model.eval().requires_grad_(False), device, dtype)

    @classmethod
    @cached_per_device
    def load(cls) -> LatentReward:
        """Load the latent reward that ships with the package."""
        return cls.from_pretrained(shipped_weights("latent_reward"))


class LatentTower(nn.Module):
    """The network of one dimension.

    It reads the latents ``rows`` of a chunk, the motion numbers ``place`` of the frame before it, and ``sound`` numbers
    of the audio condition per chunk.
    """

    rows: torch.Tensor

    def __init__(self, rows: list[int], place: slice, sound: int, config: LatentRewardConfig) -> None:
        super().__init__()
        self.register_buffer("rows", torch.tensor(rows), persistent=False)
        self.place = place
        width, frame_numbers = config.width, place.stop - place.start
        self.listen = nn.Linear(sound, width) if sound else None
        self.remember = nn.Linear(len(rows) + 1 + frame_numbers + width * bool(sound), width)
        self.look_back = nn.ModuleList(nn.Conv1d(width, width, TOWER_KERNEL, dilation=d) for d in TOWER_DILATIONS)
        self.head = FlowHead(len(rows), width + frame_numbers + width * bool(sound), width, config.depth)
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
        """Return the score of every chunk ``[B, N]``."""
        inputs = [last[..., self.place]]
        if self.listen is not None and sound is not None:
            inputs.append(F.silu(self.listen(sound)))
        summary = self.remember(torch.cat([before[..., self.rows], before_level[..., None], *inputs], -1))
        # Shifted by one, because a chunk's memory ends with the chunk before it.
        memory = F.pad(summary.mT, (1, -1))
        for layer, dilation in zip(self.look_back, TOWER_DILATIONS, strict=True):
            memory = memory + F.silu(layer(F.pad(memory, ((TOWER_KERNEL - 1) * dilation, 0))))
        return self.head(estimate[..., self.rows], level, torch.cat([memory.mT, *inputs], -1))[..., 0]


def _latent_rows(span: slice, chunk: int) -> list[int]:
    """Return the rows of a chunk's latents that hold a span of the motion numbers."""
    return list(range(span.start * chunk, span.stop * chunk))


def _expand_sigma(sigma: torch.Tensor | float, x: torch.Tensor) -> torch.Tensor:
    """Expand σ to ``[B, N]``."""
    level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    return (level[:, None] if level.dim() == 1 else level).expand(x.shape[:2])


# --- Training: pairs of clips at random noise levels ---
#
#     σ ~ U(0, 1)      x = (1 − σ) z + σ ε
#     L = − ln P(label | x_1, x_2)  +  λ · ½ [ (s₀ − s_σ)² / c σ² + ln c σ² ]  +  μ · (1 − cos of slopes)
#
# The first term is Thurstone's likelihood (``pair_loss``). The second calibrates the variance: c σ² should be the
# squared difference between the score s₀ of the clean clip and the score s_σ of its noisy latents. Half of the batches
# have a clean past, as in a live session, and there the third term applies: the sync score should rise in the same
# direction as the sync expert (``rewards.sync``). In the other batches the whole clip is noised.
#
#     1 − cos( ∇_x s_sync(x_σ, σ | past),  ∇_x₀ expert(x₀) )
#
# A score that only separates intact from damaged lips may rise in any direction. Guidance follows the slope of
# E[expert(x₀) | x_σ], the mean of the expert's slopes over all x₀ that x_σ can become; its direction is learned.

_MIN_NOISE_VARIANCE = 0.02
"""Smallest variance c σ² in the second term."""
_FIT_PAIRS, _FIT_BATCHES, _FIT_STEPS = 90, 8, 150
SYNC_INDEX = DIMENSIONS.index("sync")


@dataclass(frozen=True)
class LatentRewardTrainingConfig:
    """Settings of the training of the latent reward."""

    steps: int = 700
    """Optimiser steps."""
    batch: int = 45
    """Pairs per step."""
    learning_rate: float = 1e-3
    """Learning rate."""
    weight_decay: float = 0.05
    """Weight decay of AdamW."""
    width: int = 128
    """Width of the networks."""
    depth: int = 2
    """Layers of the networks."""
    calibration: float = 0.1
    """λ, the weight of the second term."""
    slope: float = 1.0
    """μ, the weight of the third term; with 0, sync is trained from pairs alone."""
    curriculum: float = 0.6
    """Share of the steps over which pairs become more subtle."""
    voices: int = 3
    """Number of voices per clip, including its own."""
    long_every: int = 3
    """Steps between two batches of longer windows."""
    seed: int = 0
    """Random seed."""


def train_latent_reward(
    config: LatentRewardTrainingConfig,
    generator: ARFlow,
    clips: Sequence[ConditionedClip],
    report: ProgressReport = report_nothing,
) -> LatentReward:
    """Train a latent reward and standardise it on ``clips``.

    Args:
        config: settings.
        generator: the generator that defines latent space and audio condition.
        clips: real clips with its audio condition.
        report: called with step, loss and seconds left.

    Raises:
        BadInput: no clip is long enough.
        KeyboardInterrupt: the user interrupted; raised after the current step.
    """
    torch.manual_seed(config.seed)
    model, expert = LatentReward.fresh(generator, config.width, config.depth).train(), MotionSyncExpert.load()
    samplers = [LatentPairSampler(clips, model.space, MOTION_CORRUPTIONS, config.seed)]
    if any(len(conditioned.clip.motion) > LONG_WINDOW_CHUNKS * model.space.chunk + 2 for conditioned in clips):
        samplers.append(LatentPairSampler(clips, model.space, MOTION_CORRUPTIONS, config.seed + 1, LONG_WINDOW_CHUNKS))

    def loss(step: int) -> torch.Tensor:
        sampler = samplers[-1] if step % config.long_every == config.long_every - 1 else samplers[0]
        pairs = sampler.draw(config.batch, min(1.0, step / (config.curriculum * config.steps)))
        past_is_known = step % 2 == 0
        total = latent_reward_loss(model, score_latent_pairs(model, pairs, past_is_known), config.calibration)
        return total + config.slope * slope_loss(model, pairs, expert) if config.slope and past_is_known else total

    minimize(model.parameters(), loss, config.steps, config.learning_rate, config.weight_decay, report)
    model.eval()
    fit_noise_variance(model, samplers[0], config.calibration)
    model.requires_grad_(False)
    real = LatentPairSampler(clips, model.space, MOTION_CORRUPTIONS, config.seed + 2).draw(512)
    intact, start = real.intact()
    model.standardise(model(intact, 0.0, real.audio, start).clip().mean)
    return model


class ScoredPairs(NamedTuple):
    """Scores of a batch of pairs: all first clips, then all second ones.

    Attributes:
        mean: scores ``[2B, 3]`` at noise level σ.
        clean: scores ``[2B, 3]`` at noise level 0.
        sigma: noise level ``[2B]``.
        labels: ``[B, 3]``.
        past_is_known: whether the past chunks were clean.
    """

    mean: torch.Tensor
    clean: torch.Tensor
    sigma: torch.Tensor
    labels: torch.Tensor
    past_is_known: bool


def score_latent_pairs(model: LatentReward, pairs: LatentPairBatch, past_is_known: bool) -> ScoredPairs:
    """Score pairs with noise drawn for every clip and σ drawn for every pair."""
    clean, audio, start = pairs.all_clips()
    sigma = torch.rand(len(pairs.first)).repeat(2)
    noisy = interpolate(clean, torch.randn_like(clean), sigma[:, None, None])
    mean = model(noisy, sigma, audio, start, clean if past_is_known else None).clip().mean
    with torch.no_grad():
        clean_scores = model(clean, 0.0, audio, start).clip().mean
    return ScoredPairs(mean, clean_scores, sigma, pairs.labels, past_is_known)


def latent_reward_loss(model: LatentReward, scored: ScoredPairs, calibration: float) -> torch.Tensor:
    """Return the first two terms of L, a scalar, for a model that is not yet standardised."""
    noise_variance = model.noise_variance(scored.sigma, scored.past_is_known)
    log_std = (BASE_VARIANCE + noise_variance).log() / 2
    log_probs = model.log_probs(*LatentScores(scored.mean, log_std).split())
    likelihood = -choice_log_probs(log_probs, scored.labels).mean()
    squared_error = (scored.clean - scored.mean).square()
    return (
        likelihood
        + calibration
        * (squared_error / (noise_variance + _MIN_NOISE_VARIANCE) + (noise_variance + _MIN_NOISE_VARIANCE).log()).mean()
        / 2
    )


def slope_loss(model: LatentReward, pairs: LatentPairBatch, expert: MotionSyncExpert) -> torch.Tensor:
    """Return the third term of L over the lips of the intact clips, a scalar; noise and σ are drawn for every clip."""
    clean, start = pairs.intact()
    target = expert_slope(model, clean, start, pairs.mel, expert)
    sigma = torch.rand(len(clean))
    noisy = interpolate(clean, torch.randn_like(clean), sigma[:, None, None]).requires_grad_()
    score = model(noisy, sigma, pairs.audio, start, clean).mean[..., SYNC_INDEX].sum()
    (slope,) = torch.autograd.grad(score, noisy, create_graph=True)
    lips = model.sync.rows
    return 1 - cosine_similarity(slope[..., lips], target[..., lips], dim=-1).mean()


def expert_slope(
    model: LatentReward, clean: torch.Tensor, start: torch.Tensor, mel: torch.Tensor, expert: MotionSyncExpert
) -> torch.Tensor:
    """Return the gradient ``[B, N, D]`` of the expert's mean cosine with respect to clean latents."""
    point = clean.detach().requires_grad_()
    score = expert.score(model.space.decode_track(point, start).flatten(1, 2), mel)[1].sum()
    (slope,) = torch.autograd.grad(score, point)
    return slope


def fit_noise_variance(model: LatentReward, sampler: LatentPairSampler, calibration: float) -> None:
    """Fit c alone with fixed towers, because joint training moves its six numbers too slowly."""
    with torch.no_grad():
        batches = [
            score_latent_pairs(model, sampler.draw(_FIT_PAIRS), past_is_known)
            for past_is_known in (False, True)
            for _ in range(_FIT_BATCHES)
        ]
    optimiser = torch.optim.Adam([model.growth], 0.1)
    for _ in range(_FIT_STEPS):
        optimiser.zero_grad()
        torch.stack([latent_reward_loss(model, batch, calibration) for batch in batches]).mean().backward()
        optimiser.step()
