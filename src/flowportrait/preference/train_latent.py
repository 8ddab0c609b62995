"""Train the latent reward: pairs of clips at noise levels drawn at random.

    σ ~ U(0, 1)      x = (1 − σ) z + σ ε
    L = − ln P(label | x_A, x_B)  +  λ · ½ [ (s₀ − s_σ)² / c σ² + ln c σ² ]  +  μ · (1 − cos of slopes)

The first term is Thurstone's likelihood (``thurstone``). The second makes the variance mean something: c σ² is to be
what the score of the clean clip, s₀, differs by from the score of its noisy latents, s_σ. Half of the batches know the
clean past, as a live generator does, and there the third has its say: the sync score is to rise where the sync expert
does (``slope``). In the others the whole clip is noised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from flowportrait.corruption import MOTION_CORRUPTIONS
from flowportrait.flow.path import interpolate
from flowportrait.generator.arflow import ARFlow
from flowportrait.preference.heard_clips import HeardClip
from flowportrait.preference.latent_pairs import LONG, LatentPairMaker, LatentPairs
from flowportrait.preference.latent_reward import TASTE, LatentReward, Verdict
from flowportrait.preference.slope import slope_loss
from flowportrait.reward.sync import SyncExpert
from flowportrait.training.descend import Report, descend, silent

_LEAST = 0.02
"""Of the variance c σ² in the second term."""
_LOT, _LOTS, _FITTING_STEPS = 90, 8, 150


@dataclass(frozen=True)
class LatentPlan:
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
    """In which each clip is heard, its own among them."""
    long_every: int = 3
    """Every so many steps a batch of longer windows."""
    seed: int = 0


def train_latent(
    plan: LatentPlan,
    generator: ARFlow,
    clips: Sequence[HeardClip],
    report: Report = silent,
) -> LatentReward:
    """A trained latent reward, standardised on ``clips``; report: step, loss, seconds left.

    Raises:
        BadInput: no clip is long enough.
        KeyboardInterrupt: asked to stop, after the step under way.
    """
    torch.manual_seed(plan.seed)
    model, expert = LatentReward.fresh(generator, plan.width, plan.depth).train(), SyncExpert.load()
    makers = [LatentPairMaker(clips, model.space, MOTION_CORRUPTIONS, plan.seed)]
    if any(len(heard.clip.motion) > LONG * model.space.chunk + 2 for heard in clips):
        makers.append(LatentPairMaker(clips, model.space, MOTION_CORRUPTIONS, plan.seed + 1, LONG))

    def loss(step: int) -> torch.Tensor:
        maker = makers[-1] if step % plan.long_every == plan.long_every - 1 else makers[0]
        pairs = maker.draw(plan.batch, min(1.0, step / (plan.curriculum * plan.steps)))
        past_is_known = step % 2 == 0
        own = latent_loss(model, measure(model, pairs, past_is_known), plan.calibration)
        return own + plan.slope * slope_loss(model, pairs, expert) if plan.slope and past_is_known else own

    descend(model.parameters(), loss, plan.steps, plan.learning_rate, plan.weight_decay, report)
    model.eval()
    fit_doubt(model, makers[0], plan.calibration)
    model.requires_grad_(False)
    real = LatentPairMaker(clips, model.space, MOTION_CORRUPTIONS, plan.seed + 2).draw(512)
    intact, start = real.intact()
    model.standardise(model(intact, 0.0, real.heard, start).clip().mean)
    return model


class Measured(NamedTuple):
    """Of all clips a, then all b: scores at σ and clean ``[2B, 3]``, σ ``[2B]``; labels ``[B, 3]``; whether the
    past was known."""

    mean: torch.Tensor
    clean: torch.Tensor
    sigma: torch.Tensor
    labels: torch.Tensor
    past_is_known: bool


def measure(model: LatentReward, pairs: LatentPairs, past_is_known: bool) -> Measured:
    """Scores of pairs at noise drawn anew for every clip and σ drawn for every pair."""
    clean, heard, start = pairs.both()
    sigma = torch.rand(len(pairs.a)).repeat(2)
    noisy = interpolate(clean, torch.randn_like(clean), sigma[:, None, None])
    mean = model(noisy, sigma, heard, start, clean if past_is_known else None).clip().mean
    with torch.no_grad():
        known = model(clean, 0.0, heard, start).clip().mean
    return Measured(mean, known, sigma, pairs.labels, past_is_known)


def latent_loss(model: LatentReward, measured: Measured, calibration: float) -> torch.Tensor:
    """The module's L, a scalar, for a model that is not yet standardised."""
    doubt = model.doubt(measured.sigma, measured.past_is_known)
    log_std = (TASTE + doubt).log() / 2
    chances = model.log_chances(*split(Verdict(measured.mean, log_std)))
    likelihood = -chances.gather(-1, (1 - measured.labels)[..., None]).mean()
    wrong = (measured.clean - measured.mean).square()
    return likelihood + calibration * (wrong / (doubt + _LEAST) + (doubt + _LEAST).log()).mean() / 2


def fit_doubt(model: LatentReward, maker: LatentPairMaker, calibration: float) -> None:
    """c alone, with the towers as they are: six numbers that an optimiser of a million moves too slowly."""
    with torch.no_grad():
        lots = [
            measure(model, maker.draw(_LOT), past_is_known) for past_is_known in (False, True) for _ in range(_LOTS)
        ]
    optimiser = torch.optim.Adam([model.growth], 0.1)
    for _ in range(_FITTING_STEPS):
        optimiser.zero_grad()
        torch.stack([latent_loss(model, lot, calibration) for lot in lots]).mean().backward()
        optimiser.step()


def split(verdict: Verdict) -> tuple[Verdict, Verdict]:
    """Verdicts of all a and of all b ``[B, 3]``, from those of ``LatentPairs.both``."""
    (a, b), (log_a, log_b) = verdict.mean.chunk(2), verdict.log_std.chunk(2)
    return Verdict(a, log_a), Verdict(b, log_b)
