"""A reward model of noisy latents, for guidance and pruning.

A reward of *noisy latents*: sync, expression and motion of a chunk at any noise level, without decoding it.

    past clean chunks ─► causal convolutions ─┐
    last frame before the chunk ──────────────┼─► head(x_σ, σ | ·) ─► mean        (one tower per dimension)
    audio condition now (sync alone) ─────────┘        variance  v(σ) = v₀ + c σ²

    P(first is better) = Φ( (mean_1 − mean_2 − τ) / √(v_1 + v_2) )             (Thurstone, with ties: ``pair_loss``)

A chunk's score depends on the chunk as it is at σ, on ``REACH`` chunks before it and on nothing later, so that it can
steer a live session; it is differentiable in x. The variance grows with the noise as in DiNa-LRM (arXiv 2602.11146).
The towers share nothing: expression and motion never see the sound.

Training of the latent reward: pairs of clips at noise levels drawn at random.

    σ ~ U(0, 1)      x = (1 − σ) z + σ ε
    L = − ln P(label | x_1, x_2)  +  λ · ½ [ (s₀ − s_σ)² / c σ² + ln c σ² ]  +  μ · (1 − cos of slopes)

The first term is Thurstone's likelihood (``pair_loss``). The second makes the variance mean something: c σ² is to be
what the score of the clean clip, s₀, differs by from the score of its noisy latents, s_σ. Half of the batches know the
clean past, as a live generator does, and there the third counts: the sync score is to rise where the sync expert does.
In the others the whole clip is noised.

    1 − cos( ∇_x s_sync(x_σ, σ | past),  ∇_x₀ expert(x₀) )

A score that only tells intact lips from damaged ones may rise in any direction. The slope that guidance follows is that
of E[expert(x₀) | x_σ], the mean of the expert's slopes over what x_σ can become, and its direction is what is learned;
of a chunk given its clean past, as in a live session. The expert is the reward side's (``rewards.sync``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn
from torch.nn.functional import cosine_similarity

from flowportrait.corruption import MOTION_CORRUPTIONS
from flowportrait.devices import Device, once_per_device, place, read_weights
from flowportrait.errors import BadInput
from flowportrait.files import write_json, write_weights
from flowportrait.flow.paths import interpolate
from flowportrait.models.arflow import ARFlow
from flowportrait.models.backbone import ChunkSpace, FlowHead
from flowportrait.models.speech_encoder import N_LIPS
from flowportrait.preferences.clips import MARGIN, choice_log_probs, thurstone_log_probs
from flowportrait.preferences.dataset import DIMENSIONS
from flowportrait.preferences.synthetic_pairs import LONG, ConditionedClip, LatentPairBatch, LatentPairSampler
from flowportrait.rendering.motion_basis import EXPRESSION, LOWER, MOTION_DIM
from flowportrait.rewards.sync import SyncExpert
from flowportrait.training.descend import Report, descend, silent

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


_LEAST = 0.02
"""Least variance c σ² in the second term."""
_FIT_PAIRS, _FIT_BATCHES, _FIT_STEPS = 90, 8, 150
SYNC = DIMENSIONS.index("sync")


@dataclass(frozen=True)
class LatentTrainingConfig:
    """How the latent reward is trained."""

    steps: int = 700
    batch: int = 45
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    width: int = 128
    depth: int = 2
    calibration: float = 0.1
    """λ."""
    slope: float = 1.0
    """μ; 0: sync learns from pairs alone."""
    curriculum: float = 0.6
    """Share of the steps after which pairs are as subtle as they get."""
    voices: int = 3
    """Voices that each clip is heard in, its own among them."""
    long_every: int = 3
    """Every so many steps a batch of longer windows."""
    seed: int = 0


def train_latent(
    config: LatentTrainingConfig,
    generator: ARFlow,
    clips: Sequence[ConditionedClip],
    report: Report = silent,
) -> LatentReward:
    """A trained latent reward, standardised on ``clips``.

    Args:
        config: how to train.
        generator: whose latent space is meant.
        clips: with its audio condition.
        report: called with step, loss and seconds left.

    Raises:
        BadInput: no clip is long enough.
        KeyboardInterrupt: asked to stop, after the step under way.
    """
    torch.manual_seed(config.seed)
    model, expert = LatentReward.fresh(generator, config.width, config.depth).train(), SyncExpert.load()
    samplers = [LatentPairSampler(clips, model.space, MOTION_CORRUPTIONS, config.seed)]
    if any(len(conditioned.clip.motion) > LONG * model.space.chunk + 2 for conditioned in clips):
        samplers.append(LatentPairSampler(clips, model.space, MOTION_CORRUPTIONS, config.seed + 1, LONG))

    def loss(step: int) -> torch.Tensor:
        sampler = samplers[-1] if step % config.long_every == config.long_every - 1 else samplers[0]
        pairs = sampler.draw(config.batch, min(1.0, step / (config.curriculum * config.steps)))
        past_is_known = step % 2 == 0
        own = latent_loss(model, score_pairs(model, pairs, past_is_known), config.calibration)
        return own + config.slope * slope_loss(model, pairs, expert) if config.slope and past_is_known else own

    descend(model.parameters(), loss, config.steps, config.learning_rate, config.weight_decay, report)
    model.eval()
    fit_variance(model, samplers[0], config.calibration)
    model.requires_grad_(False)
    real = LatentPairSampler(clips, model.space, MOTION_CORRUPTIONS, config.seed + 2).draw(512)
    intact, start = real.intact()
    model.standardise(model(intact, 0.0, real.audio, start).clip().mean)
    return model


class ScoredPairs(NamedTuple):
    """Scores of all first clips, then of all second ones.

    Attributes:
        mean, clean: scores at σ and at 0 ``[2B, 3]``.
        sigma: ``[2B]``.
        labels: ``[B, 3]``.
        past_is_known: whether chunks followed clean ones.
    """

    mean: torch.Tensor
    clean: torch.Tensor
    sigma: torch.Tensor
    labels: torch.Tensor
    past_is_known: bool


def score_pairs(model: LatentReward, pairs: LatentPairBatch, past_is_known: bool) -> ScoredPairs:
    """Scores of pairs at noise drawn anew for every clip and σ drawn for every pair."""
    clean, audio, start = pairs.all_clips()
    sigma = torch.rand(len(pairs.first)).repeat(2)
    noisy = interpolate(clean, torch.randn_like(clean), sigma[:, None, None])
    mean = model(noisy, sigma, audio, start, clean if past_is_known else None).clip().mean
    with torch.no_grad():
        known = model(clean, 0.0, audio, start).clip().mean
    return ScoredPairs(mean, known, sigma, pairs.labels, past_is_known)


def latent_loss(model: LatentReward, scored: ScoredPairs, calibration: float) -> torch.Tensor:
    """The module's L without its third term, a scalar, for a model that is not yet standardised."""
    noise_variance = model.noise_variance(scored.sigma, scored.past_is_known)
    log_std = (BASE_VARIANCE + noise_variance).log() / 2
    log_probs = model.log_probs(*LatentScores(scored.mean, log_std).split())
    likelihood = -choice_log_probs(log_probs, scored.labels).mean()
    wrong = (scored.clean - scored.mean).square()
    return likelihood + calibration * (wrong / (noise_variance + _LEAST) + (noise_variance + _LEAST).log()).mean() / 2


def slope_loss(model: LatentReward, pairs: LatentPairBatch, expert: SyncExpert) -> torch.Tensor:
    """The module's third term over the lips of the intact clips, a scalar; noise and σ drawn for every clip."""
    clean, start = pairs.intact()
    wanted = expert_slope(model, clean, start, pairs.mel, expert)
    sigma = torch.rand(len(clean))
    noisy = interpolate(clean, torch.randn_like(clean), sigma[:, None, None]).requires_grad_()
    score = model(noisy, sigma, pairs.audio, start, clean).mean[..., SYNC].sum()
    (own,) = torch.autograd.grad(score, noisy, create_graph=True)
    lips = model.sync.rows
    return 1 - cosine_similarity(own[..., lips], wanted[..., lips], dim=-1).mean()


def expert_slope(
    model: LatentReward, clean: torch.Tensor, start: torch.Tensor, mel: torch.Tensor, expert: SyncExpert
) -> torch.Tensor:
    """Gradient of the expert's mean cosine in clean latents ``[B, N, D]``."""
    point = clean.detach().requires_grad_()
    score = expert.score(model.space.decode_track(point, start).flatten(1, 2), mel)[1].sum()
    (slope,) = torch.autograd.grad(score, point)
    return slope


def fit_variance(model: LatentReward, sampler: LatentPairSampler, calibration: float) -> None:
    """Fit c alone, with the towers as they are: six numbers that an optimiser of a million moves too slowly."""
    with torch.no_grad():
        batches = [
            score_pairs(model, sampler.draw(_FIT_PAIRS), past_is_known)
            for past_is_known in (False, True)
            for _ in range(_FIT_BATCHES)
        ]
    optimiser = torch.optim.Adam([model.growth], 0.1)
    for _ in range(_FIT_STEPS):
        optimiser.zero_grad()
        torch.stack([latent_loss(model, batch, calibration) for batch in batches]).mean().backward()
        optimiser.step()
