"""What post-training has to beat with the same time: supervised training gone on, and sampling tuned on the reward.

continued   sft ─► flow matching on the corpus ─► as many processor seconds as a recipe gets
tuned       sft ─► guidance · temperature · steps · low-pass that the training reward likes best, best of 8
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.signal import butter, sosfiltfilt

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

BEST_OF = 8
TAKES = 2
"""Performances of every prompt that sampling is tuned on."""


def continued(corpus: Path, memory: Path, seconds: float, seed: int, learning_rate: float = 1e-4) -> ARFlow:
    """``sft`` trained on as it was trained, at a quarter of its peak learning rate. What it hears of the corpus, with
    one variant per clip, is computed once into ``memory`` and is not counted."""
    config = PretrainConfig(learning_rate=learning_rate, seed=seed)
    model = load_generator("sft").train()
    if not memory.is_file():
        save_clips(memory, extract_features(model, corpus, config.splits, 1, 0))
    clips = with_lip_targets(model, load_clips(memory), config.lip_residual)
    generator = torch.Generator().manual_seed(seed)
    samplers = [WindowSampler(clips, frames, generator) for frames in config.windows]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    begun, step = time.process_time(), 0
    while time.process_time() - begun < seconds:
        motion, heard, style = samplers[step % len(samplers)].draw(config.batch)
        optimizer.zero_grad()
        flow_matching_loss(model, motion, heard, style, config, generator).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - min(0.99, (step + 1) / (step + 10)))
    return average.eval()


@dataclass(frozen=True)
class Sampling:
    """How performances are drawn from trained weights; ``low_pass``: Hz over the lower face, 0 for none."""

    guidance: float
    steps: int
    temperature: float = 1.0
    low_pass: float = 0.0


CHOICES: dict[str, tuple[float | int, ...]] = {
    "guidance": (1.0, 1.5, 2.0, 2.5, 3.0), "temperature": (0.7, 0.85, 1.0, 1.15), "steps": (4, 6, 10),
    "low_pass": (0.0, 10.0, 8.0, 6.0),
}  # fmt: skip


def perform(model: ARFlow, sampling: Sampling, audio: np.ndarray, seed: int) -> torch.Tensor:
    """Motion ``[T, 30]`` of speech ``[N]`` at 16 kHz, as the product performs it but for the sampling."""
    motion = torch.cat(list(Animator(sampled(model, sampling)).motion(audio, seed=seed)))
    return _smoothed(motion[None], sampling.low_pass)[0]


def best_of(
    model: ARFlow,
    sampling: Sampling,
    audio: np.ndarray,
    seed: int,
    portrait: int,
    rewards: CompositeReward,
    draw: RendererFactory,
) -> torch.Tensor:
    """The performance of eight that the training reward likes best."""
    takes = torch.stack([perform(model, sampling, audio, BEST_OF * seed + take) for take in range(BEST_OF)])
    mel = log_mel(normalize_loudness(audio))[: 4 * takes.shape[1]].expand(BEST_OF, -1, -1)
    whole = 4 * (mel.shape[1] // 4)
    scores = rewards(RewardBatch(takes[:, : whole // 4], mel[:, :whole], draw([portrait] * BEST_OF)))
    credit = assign_credit(scores, torch.zeros(BEST_OF, dtype=torch.long), 1, rewards.weights, CreditConfig(dense=0.0))
    return takes[int(credit.advantage[:, 0].argmax())]


def tuned(
    model: ARFlow, prompts: SpeechPrompts, rewards: CompositeReward, draw: RendererFactory, say: Callable[[str], None]
) -> Sampling:
    """Settings found one after the other, each the one that the training reward likes best on ``prompts``."""
    chosen = Sampling(model.config.guidance, model.config.steps)
    base = _scored(model, chosen, prompts, rewards, draw)
    for name, choices in CHOICES.items():
        worth = {}
        for choice in choices:
            found = _scored(model, override(chosen, [f"{name}={choice}"]), prompts, rewards, draw)
            worth[choice] = sum(
                weight * float((found[key].value - base[key].value).mean() / base[key].value.std())
                for key, weight in rewards.weights.items()
            )
        best = max(worth, key=lambda choice: worth[choice])
        chosen = override(chosen, [f"{name}={best}"])
        say(f"{name}: " + ", ".join(f"{choice:g} {value:+.3f}" for choice, value in worth.items()))
    return chosen


def _scored(
    model: ARFlow, sampling: Sampling, prompts: SpeechPrompts, rewards: CompositeReward, draw: RendererFactory
) -> dict[str, Score]:
    mel, portraits = prompts.mel.repeat(TAKES, 1, 1), prompts.portraits * TAKES
    motion = sample_from_mel(sampled(model, sampling), mel, list(range(len(mel))))
    return rewards(RewardBatch(MotionLowPass()(_smoothed(motion, sampling.low_pass)), mel, draw(portraits)))


def sampled(model: ARFlow, sampling: Sampling) -> ARFlow:
    """The same weights, drawn from otherwise."""
    drawn = copy.copy(model)
    drawn.config = replace(model.config, guidance=sampling.guidance, steps=sampling.steps)
    # Hides the method in this copy alone.
    vars(drawn)["begin"] = lambda noise: sampling.temperature * model.begin(noise)
    return drawn


def _smoothed(motion: torch.Tensor, cutoff: float) -> torch.Tensor:
    """The lower face of ``[B, T, 30]`` without what is faster than ``cutoff`` Hz, not delayed."""
    if not cutoff:
        return motion
    smooth = motion.clone()
    passed = sosfiltfilt(butter(2, cutoff, fs=FPS, output="sos"), motion[..., LOWER_FACE].numpy(), axis=1)
    smooth[..., LOWER_FACE] = torch.from_numpy(passed.copy()).float()
    return smooth
