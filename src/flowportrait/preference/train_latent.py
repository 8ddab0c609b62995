"""Training of the latent reward: pairs of clips at noise levels drawn at random.

    σ ~ U(0, 1)      x = (1 − σ) z + σ ε
    L = − ln P(label | x_1, x_2)  +  λ · ½ [ (s₀ − s_σ)² / c σ² + ln c σ² ]  +  μ · (1 − cos of slopes)

The first term is Thurstone's likelihood (``pair_loss``). The second makes the variance mean something: c σ² is to be
what the score of the clean clip, s₀, differs by from the score of its noisy latents, s_σ. Half of the batches know the
clean past, as a live generator does, and there the third counts: the sync score is to rise where the sync expert does.
In the others the whole clip is noised.

    1 − cos( ∇_x s_sync(x_σ, σ | past),  ∇_x₀ expert(x₀) )

A score that only tells intact lips from damaged ones may rise in any direction. The slope that guidance follows is that
of E[expert(x₀) | x_σ], the mean of the expert's slopes over what x_σ can become, and its direction is what is learned;
of a chunk given its clean past, as in a live session. The expert is the reward side's (``reward.sync``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.functional import cosine_similarity

from flowportrait.corruption import MOTION_CORRUPTIONS
from flowportrait.flow.path import interpolate
from flowportrait.generator.arflow import ARFlow
from flowportrait.preference.dataset import DIMENSIONS
from flowportrait.preference.latent_reward import BASE_VARIANCE, LatentReward, LatentScores
from flowportrait.preference.pair_loss import choice_log_probs
from flowportrait.preference.synthetic_pairs import LONG, ConditionedClip, LatentPairBatch, LatentPairSampler
from flowportrait.reward.sync import SyncExpert
from flowportrait.training.descend import Report, descend, silent

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
