"""What post-training has to beat in the same time: more supervised training, and tuned sampling.

    train_longer     sft ─► flow matching on the corpus, for as many processor seconds as a recipe gets
    tune_sampling    sft ─► guidance, temperature, steps and low-pass that the training reward prefers; then best of 8

The random-reward control is a setting of every recipe.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.signal import butter, sosfiltfilt

from benchmarks.drawing import generate_motion
from flowportrait.config import override
from flowportrait.data.motion_dataset import WindowSampler
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.media.video import FPS
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.pretrain import PretrainConfig, flow_matching_loss, with_lip_targets
from flowportrait.models.sampler import sample_from_mel
from flowportrait.models.training_clips import extract_features, load_clips, save_clips
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.motion_basis import LOWER_FACE
from flowportrait.rendering.motion_filters import MotionLowPass
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.credit import CreditConfig, assign_credit
from flowportrait.rl.task import RendererFactory, SpeechPrompts
from flowportrait.terminal import log

BEST_OF = 8
TUNING_SAMPLES = 2
"""Samples of every prompt on which sampling is tuned."""


def train_longer(corpus: Path, features: Path, seconds: float, seed: int, learning_rate: float = 1e-4) -> ARFlow:
    """Return ``sft`` after more of its own supervised training, at a quarter of its peak learning rate.

    Args:
        corpus: the prepared corpus.
        features: file of the corpus's features, one variant per clip; computed once, and not counted.
        seconds: processor seconds of training.
        seed: random seed.
        learning_rate: learning rate.
    """
    config = PretrainConfig(learning_rate=learning_rate, seed=seed)
    model = load_generator("sft").train()
    if not features.is_file():
        save_clips(features, extract_features(model, corpus, config.splits, 1, 0))
    clips = with_lip_targets(model, load_clips(features), config.lip_residual)
    generator = torch.Generator().manual_seed(seed)
    samplers = [WindowSampler(clips, frames, generator) for frames in config.windows]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    began, step = time.process_time(), 0
    while time.process_time() - began < seconds:
        motion, audio, style = samplers[step % len(samplers)].draw(config.batch)
        optimizer.zero_grad()
        flow_matching_loss(model, motion, audio, style, config, generator).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - min(0.99, (step + 1) / (step + 10)))
    return average.eval()


@dataclass(frozen=True)
class Sampling:
    """How motion is drawn from trained weights."""

    guidance: float
    steps: int
    temperature: float = 1.0
    low_pass: float = 0.0
    """Cutoff in Hz over the lower face; 0 for none."""


CHOICES: dict[str, tuple[float | int, ...]] = {
    "guidance": (1.0, 1.5, 2.0, 2.5, 3.0),
    "temperature": (0.7, 0.85, 1.0, 1.15),
    "steps": (4, 6, 10),
    "low_pass": (0.0, 10.0, 8.0, 6.0),
}
"""Values of every setting that are tried."""


def tune_sampling(
    model: ARFlow, prompts: SpeechPrompts, rewards: CompositeReward, renderer: RendererFactory
) -> Sampling:
    """Choose the settings one after the other, each the one that the rewards prefer on ``prompts``."""
    chosen = Sampling(model.config.guidance, model.config.steps)
    base = _score(model, chosen, prompts, rewards, renderer)
    for name, choices in CHOICES.items():
        gains = {}
        for choice in choices:
            found = _score(model, override(chosen, [f"{name}={choice}"]), prompts, rewards, renderer)
            gains[choice] = sum(
                weight * float((found[key].value - base[key].value).mean() / base[key].value.std())
                for key, weight in rewards.weights.items()
            )
        chosen = override(chosen, [f"{name}={max(gains, key=lambda choice: gains[choice])}"])
        log(f"{name}: " + ", ".join(f"{choice:g} {gain:+.3f}" for choice, gain in gains.items()))
    return chosen


def best_of(
    model: ARFlow,
    sampling: Sampling,
    audio: np.ndarray,
    seed: int,
    portrait: int,
    rewards: CompositeReward,
    renderer: RendererFactory,
) -> torch.Tensor:
    """Return the motion ``[T, 30]`` of eight that the training reward prefers."""
    animator = Animator(with_sampling(model, sampling))
    motion = torch.stack([generate_motion(animator, audio, BEST_OF * seed + sample) for sample in range(BEST_OF)])
    motion = smooth_lips(motion, sampling.low_pass)
    mel = log_mel(normalize_loudness(audio))[: 4 * motion.shape[1]].expand(BEST_OF, -1, -1)
    whole = 4 * (mel.shape[1] // 4)
    scores = rewards(RewardBatch(motion[:, : whole // 4], mel[:, :whole], renderer([portrait] * BEST_OF)))
    credit = assign_credit(scores, torch.zeros(BEST_OF, dtype=torch.long), 1, rewards.weights, CreditConfig(dense=0.0))
    return motion[int(credit.advantage[:, 0].argmax())]


def _score(
    model: ARFlow, sampling: Sampling, prompts: SpeechPrompts, rewards: CompositeReward, renderer: RendererFactory
) -> dict[str, Score]:
    mel, portraits = prompts.mel.repeat(TUNING_SAMPLES, 1, 1), prompts.portraits * TUNING_SAMPLES
    motion = sample_from_mel(with_sampling(model, sampling), mel, list(range(len(mel))))
    smooth = MotionLowPass()(smooth_lips(motion, sampling.low_pass))
    return rewards(RewardBatch(smooth, mel, renderer(portraits)))


def with_sampling(model: ARFlow, sampling: Sampling) -> ARFlow:
    """Return a generator with the same weights that draws with other settings."""
    changed = copy.copy(model)
    changed.config = replace(model.config, guidance=sampling.guidance, steps=sampling.steps)
    # This hides the method in the copy alone.
    vars(changed)["initial_state"] = lambda noise: sampling.temperature * model.initial_state(noise)
    return changed


def smooth_lips(motion: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Return motion ``[B, T, 30]`` whose lower face has nothing above ``cutoff`` Hz, without delay."""
    if not cutoff:
        return motion
    smooth = motion.clone()
    passed = sosfiltfilt(butter(2, cutoff, fs=FPS, output="sos"), motion[..., LOWER_FACE].numpy(), axis=1)
    smooth[..., LOWER_FACE] = torch.from_numpy(passed.copy()).float()
    return smooth
