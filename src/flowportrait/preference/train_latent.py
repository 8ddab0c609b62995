"""Train the latent reward: pairs of clips at noise levels drawn at random.

    σ ~ U(0, 1), or 0      x = (1 − σ) z + σ ε
    L = − ln P(label | x_A, x_B)  +  λ · ½ [ (s₀ − s_σ)² / c σ² + ln c σ² ]

The first term is Thurstone's likelihood (``thurstone``). The second makes the variance mean something: c σ² is to be
what the score of the clean clip, s₀, differs by from the score of its noisy latents, s_σ. Half of the batches know the
clean past, as a live generator does; in the others the whole clip is noised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from flowportrait.flow.path import interpolate
from flowportrait.generator.arflow import ARFlow
from flowportrait.interrupt import StopRequest
from flowportrait.preference.heard_clips import HeardClip
from flowportrait.preference.latent_pairs import LONG, LatentPairMaker, LatentPairs
from flowportrait.preference.latent_reward import LatentReward, Verdict
from flowportrait.preference.motion_damage import LEARNED

_LEAST = 0.02
"""Of the variance c σ² in the second term."""
_FASTER = 30.0
_CLEAN = 0.1
"""Share of the pairs at σ = 0."""


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
    report: Callable[[int, float, float], None] = lambda step, loss, left: None,
) -> LatentReward:
    """A trained latent reward, standardised on ``clips``; report: step, loss, seconds left.

    Raises:
        BadInput: no clip is long enough.
        KeyboardInterrupt: asked to stop, after the step under way.
    """
    torch.manual_seed(plan.seed)
    model = LatentReward.fresh(generator, plan.width, plan.depth).train()
    makers = [LatentPairMaker(clips, model.space, LEARNED, plan.seed)]
    if any(len(heard.clip.motion) > LONG * model.space.chunk + 2 for heard in clips):
        makers.append(LatentPairMaker(clips, model.space, LEARNED, plan.seed + 1, LONG))
    weights = [value for name, value in model.named_parameters() if name != "growth"]
    # c is one number for many weights and must go as far as they do together.
    rates = [plan.learning_rate, _FASTER * plan.learning_rate]
    optimiser = torch.optim.AdamW(
        [{"params": weights}, {"params": [model.growth], "weight_decay": 0.0}], weight_decay=plan.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=plan.steps + 1, pct_start=0.1)
    began = time.monotonic()
    with StopRequest() as stop:
        for step in range(plan.steps):
            maker = makers[-1] if step % plan.long_every == plan.long_every - 1 else makers[0]
            pairs = maker.draw(plan.batch, min(1.0, step / (plan.curriculum * plan.steps)))
            noise = torch.randn(2 * len(pairs.a), *pairs.a.shape[1:])
            # A generator may start from wider noise than the path's own; both are met.
            noise = noise if step % 4 < 2 else generator.begin(noise)
            loss = latent_loss(model, pairs, noise, plan.calibration, past_is_known=step % 2 == 0)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            if (step + 1) % 50 == 0:
                left = (time.monotonic() - began) / (step + 1) * (plan.steps - step - 1)
                report(step + 1, float(loss.detach()), left)
            if stop.asked:
                break
    stop.obey()
    model.eval().requires_grad_(False)
    real = LatentPairMaker(clips, model.space, LEARNED, plan.seed + 2).draw(512)
    intact = torch.where(real.intact_is_a[:, None, None], real.a, real.b)
    start = torch.where(real.intact_is_a[:, None], real.start_a, real.start_b)
    model.standardise(model(intact, 0.0, real.heard, start).clip().mean)
    return model


def latent_loss(
    model: LatentReward, pairs: LatentPairs, noise: torch.Tensor, calibration: float, past_is_known: bool
) -> torch.Tensor:
    """The module's L, a scalar, with ε ``[2B, N, chunk·30]`` and σ drawn for every pair."""
    clean, heard, start = pairs.both()
    sigma = torch.rand(len(pairs.a))
    sigma = sigma.where(torch.rand(len(sigma)) > _CLEAN, 0).repeat(2)
    noisy = interpolate(clean, noise, sigma[:, None, None])
    verdict = model(noisy, sigma, heard, start, clean if past_is_known else None).clip()
    chances = model.log_chances(*split(verdict))
    likelihood = -chances.gather(-1, (1 - pairs.labels)[..., None]).mean()
    if not calibration:
        return likelihood
    known = model(clean, 0.0, heard, start).clip().mean.detach()
    variance = model.doubt(sigma[:, None], past_is_known)[:, 0] + _LEAST
    wrong = (known - verdict.mean).square()
    return likelihood + calibration * (wrong / variance + variance.log()).mean() / 2


def split(verdict: Verdict) -> tuple[Verdict, Verdict]:
    """Verdicts of all a and of all b ``[B, 3]``, from those of ``LatentPairs.both``."""
    (a, b), (log_a, log_b) = verdict.mean.chunk(2), verdict.log_std.chunk(2)
    return Verdict(a, log_a), Verdict(b, log_b)
