"""How well reward models that learned from pairs tell intact from damaged clips, on unseen speakers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.material import load_or_make, use_one_thread
from benchmarks.record import Record
from flowportrait.corruption import HELD_OUT_MOTION_CORRUPTIONS, MOTION_CORRUPTIONS
from flowportrait.data.motion_dataset import MotionClip, load_motion_clips
from flowportrait.evaluation.statistics import bootstrap_mean
from flowportrait.flow.schedules import interpolate
from flowportrait.models.arflow import load_generator
from flowportrait.preferences.clips import PairObjective
from flowportrait.preferences.dataset import DIMENSIONS
from flowportrait.preferences.latent_reward import LatentReward
from flowportrait.preferences.reward_model import MotionReward, MotionRewardTrainingConfig, train_motion_reward
from flowportrait.preferences.synthetic_pairs import (
    WINDOW_FRAMES,
    DamagedPairSampler,
    LatentPairBatch,
    LatentPairSampler,
    add_audio_conditions,
    generate_clips,
)
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Reward
from flowportrait.rewards.motion import (
    ExpressivenessReward,
    EyesReward,
    HeadReward,
    RealMotionStatistics,
    SmoothnessReward,
)
from flowportrait.rewards.sync import LipSyncReward, MotionSyncExpert

PAIRS, LATENT_PAIRS = 840, 270
SIGMAS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)
NOISY_PAST, CLEAN_PAST = "whole clip noisy", "past clean"
DAMAGES = {"learned damage": MOTION_CORRUPTIONS, "unseen damage": HELD_OUT_MOTION_CORRUPTIONS}
SHIPPED = "reward model (shipped)"
BASELINES: tuple[PairObjective, ...] = ("plain", "regression")
Scores = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Scores ``[B, 3]`` of motion ``[B, T, 30]`` and log-mel ``[B, 4T, 80]``, one for each dimension."""


@dataclass(frozen=True)
class PreferencesOptions:
    """Measure how often a reward model that learned from preference pairs tells an intact clip from a damaged one.

    The shipped model (Bradley-Terry with ties) stands beside every single reward and beside the same network trained
    with plain Bradley-Terry and with regression, which should lose. Pairs are of dev speakers; thresholds for ties come
    from training speakers. latent: the shipped latent reward by noise level, and what it says of its own certainty.
    """

    corpus: Path
    """Prepared corpus with dev and training speakers."""
    output: Path
    """Folder in which what takes long is kept."""
    part: tuple[Literal["scores", "latent"], ...] = ("scores", "latent")
    """What to measure: scores, latent."""
    pairs: int = PAIRS
    """Pairs of a kind of damage."""
    latent_pairs: int = LATENT_PAIRS
    """Pairs for the latent reward."""
    steps: int = MotionRewardTrainingConfig.steps
    """Training steps of the baselines; the shipped model had as many as the default."""


@torch.no_grad()
def preferences(options: PreferencesOptions, record: Record) -> None:
    """Train the baselines and measure all models."""
    use_one_thread()
    options.output.mkdir(parents=True, exist_ok=True)
    training, unseen = load_or_make(
        options.output / "clips.pt",
        lambda: [load_motion_clips(options.corpus, (split,)) for split in ("reward", "dev")],
    )
    models: dict[str, Scores] = {SHIPPED: MotionReward.load()}
    for objective in BASELINES:
        path = options.output / f"{objective}.safetensors"
        if not path.is_file():
            config = MotionRewardTrainingConfig(objective=objective, steps=options.steps)
            with torch.enable_grad():
                train_motion_reward(config, training).save(path)
        models[objective] = MotionReward.read(path)
    if "scores" in options.part:
        add_accuracies(options, training, unseen, models, record)
    if "latent" in options.part:
        add_latent_reward(options, unseen, models, record)


# ── models of motion ───────────────────────────────────────────────────────────────────────────────────────────────


def single_rewards(clips: list[MotionClip]) -> dict[str, Scores]:
    """Return single rewards, each as the score of all three dimensions, with statistics of real windows."""
    windows = [clip.motion[:WINDOW_FRAMES] for clip in clips if len(clip.motion) >= WINDOW_FRAMES]
    real = RealMotionStatistics.measure(torch.stack(windows))
    expert = MotionSyncExpert.load()
    rewards: dict[str, Reward] = {
        "sync": LipSyncReward(expert), "expressiveness": ExpressivenessReward(real), "eyes": EyesReward(real),
        "head": HeadReward(real), "smoothness": SmoothnessReward(real),
    }  # fmt: skip

    def everywhere(reward: Reward) -> Scores:
        return lambda motion, mel: reward(RewardBatch(motion, mel)).value[:, None].expand(-1, 3)

    found = {f"reward {name}": everywhere(reward) for name, reward in rewards.items()}
    found["reward sync, plain cosine"] = lambda motion, mel: expert.score(motion, mel)[1][:, None].expand(-1, 3)
    return found


def add_accuracies(
    options: PreferencesOptions,
    training: list[MotionClip],
    unseen: list[MotionClip],
    models: dict[str, Scores],
    record: Record,
) -> None:
    """Add the accuracy of rewards and models on damage that was learned from, and on damage that was not."""
    calibration = DamagedPairSampler(training, MOTION_CORRUPTIONS, 77).draw(options.pairs)
    for seed, (test, damages) in enumerate(DAMAGES.items(), 1):
        batch = DamagedPairSampler(unseen, damages, seed).draw(options.pairs)
        truth = signs(batch.labels)
        first_is_intact = (batch.points[:, 0] > batch.points[:, 1]).any(1)
        for name, scores in {**single_rewards(training), **models}.items():
            known, gap = (scores(own.first, own.mel) - scores(own.second, own.mel) for own in (calibration, batch))
            thresholds = tie_thresholds(known, calibration.labels)
            stated = torch.where(gap.abs() <= thresholds, 0, gap.sign())
            for column, dimension in enumerate(DIMENSIONS):
                own, decided = truth[:, column], truth[:, column] != 0
                # A scorer that sees no difference tosses a coin.
                right = 0.5 + gap[decided, column].sign() * own[decided] / 2
                with_ties = (stated[:, column] == own).float()
                record.add(name, dimension, bootstrap_mean(right.numpy()), group=f"{test}: accuracy on decided pairs")
                record.add(name, dimension, bootstrap_mean(with_ties.numpy()), group=f"{test}: accuracy with ties")
            if name == SHIPPED:
                higher = 0.5 + gap.sign() * (2 * first_is_intact[:, None].float() - 1) / 2
                for kind in dict.fromkeys(batch.kinds):
                    rows = torch.tensor([own == kind for own in batch.kinds])
                    for column, dimension in enumerate(DIMENSIONS):
                        share = bootstrap_mean(higher[rows, column].numpy())
                        record.add(
                            kind, dimension, share, group=f"{test}: share in which the intact clip scores higher"
                        )


def signs(labels: torch.Tensor) -> torch.Tensor:
    """Return values of ``Label`` as 1 where the first clip is better, −1 where the second is, 0 for a tie."""
    return 2 * labels - 1


def tie_thresholds(difference: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the score difference ``[D]`` up to which a tie is the most accurate answer, for ``[N, D]`` pairs."""
    found = []
    for column in range(len(DIMENSIONS)):
        own, truth = difference[:, column], signs(labels)[:, column]
        candidates = own.abs().quantile(torch.linspace(0, 1, 101))
        stated = torch.where(own.abs()[None] <= candidates[:, None], 0, own.sign()[None])
        found.append(candidates[(stated == truth).float().mean(1).argmax()])
    return torch.stack(found)


# ── the latent reward ──────────────────────────────────────────────────────────────────────────────────────────────


def add_latent_reward(
    options: PreferencesOptions, unseen: list[MotionClip], models: dict[str, Scores], record: Record
) -> None:
    """Add the accuracy of the latent reward on real and generated clips, and how models rate real against generated."""
    generator, latent = load_generator("sft"), LatentReward.load()
    real = load_or_make(options.output / "real_conditions.pt", lambda: add_audio_conditions(generator, unseen))
    for seed, (test, damages) in enumerate(DAMAGES.items(), 3):
        pairs = LatentPairSampler(real, latent.space, damages, seed, vary=False).draw(options.latent_pairs)
        add_noise_levels(latent, pairs, (NOISY_PAST, CLEAN_PAST), f"latent reward, {test}", record)
    generated = load_or_make(options.output / "generated.pt", lambda: generate_clips(generator, real))
    pairs = LatentPairSampler(generated, latent.space, MOTION_CORRUPTIONS, 5, vary=False).draw(options.latent_pairs)
    add_noise_levels(latent, pairs, (CLEAN_PAST,), "latent reward, generated clips, learned damage", record)
    add_real_against_generated(unseen, [own.clip for own in generated], models, record)


def add_noise_levels(
    model: LatentReward, pairs: LatentPairBatch, pasts: Sequence[str], group: str, record: Record
) -> None:
    """Add the accuracy on decided pairs by noise level σ, and the probability that the model gave its own verdict."""
    clean, audio, start = pairs.all_clips()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    truth = signs(pairs.labels)
    for past in pasts:
        for sigma in SIGMAS:
            noisy = interpolate(clean, noise, torch.tensor(sigma))
            first, second = model(noisy, sigma, audio, start, clean if past == CLEAN_PAST else None).clip().split()
            win, _, loss = model.log_probs(first, second).exp().unbind(-1)
            right = ((first.mean - second.mean).sign() == truth).float()
            certainty = torch.maximum(win, loss) / (win + loss)
            for column, dimension in enumerate(DIMENSIONS):
                decided = truth[:, column] != 0
                for title, values in (("accuracy", right), ("stated certainty", certainty)):
                    estimate = bootstrap_mean(values[decided, column].numpy())
                    record.add(f"σ {sigma}", dimension, estimate, group=f"{group}, {past}: {title}")


def add_real_against_generated(
    unseen: list[MotionClip], generated: list[MotionClip], models: dict[str, Scores], record: Record
) -> None:
    """Add the share of sentences whose real motion scores above generated motion; no model saw such pairs."""
    by_name = {clip.name: clip for clip in unseen}
    pairs = [(by_name[own.name], own) for own in generated if len(own.motion) > WINDOW_FRAMES]
    real, sampled = (torch.stack([pair[side].motion[1 : 1 + WINDOW_FRAMES] for pair in pairs]) for side in (0, 1))
    mel = torch.stack([own.mel[4 : 4 * (1 + WINDOW_FRAMES)].float() for own, _ in pairs])
    for name, scores in models.items():
        above = (scores(real, mel) > scores(sampled, mel)).numpy().astype(np.float64)
        for column, dimension in enumerate(DIMENSIONS):
            record.add(name, dimension, bootstrap_mean(above[:, column]), group="share with real above generated")
