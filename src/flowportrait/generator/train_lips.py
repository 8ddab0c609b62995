"""First stage of supervised training: regress the lower face on sound, before anything is drawn.

L = E w ⊙ ( μ(sound) − standardised lips )²
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from flowportrait.corpus.motion_set import MotionClip, WindowSampler
from flowportrait.devices import device_of
from flowportrait.generator.audio_encoder import N_LIPS, LipReader
from flowportrait.training.descend import GuardedStep

WINDOW = 28
BATCH = 48
LEARNING_RATE = 2e-3
WARMUP = 50
WEIGHT = torch.tensor([1.0] * 8 + [0.8] * 4 + [0.6] * (N_LIPS - 12))


def train_lips(
    reader: LipReader, clips: list[MotionClip], steps: int, share: float, seed: int, tick: Callable[[float], None]
) -> None:
    """Fit ``reader`` in place, with its scale and gain, and freeze it; ``tick`` gets every step's loss."""
    device = device_of(reader)
    everything = [reader.standardise(clip.motion.to(device), clip.style.to(device)) for clip in clips]
    reader.fit_scale(torch.cat(everything))
    generator = torch.Generator().manual_seed(seed)
    sampler = WindowSampler(clips, WINDOW, generator)
    reader.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(reader.parameters(), LEARNING_RATE, weight_decay=0.05)
    guarded_step = GuardedStep(reader.parameters(), optimizer, math.inf)
    for step in range(steps):
        progress = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * progress
        motion, features, style, *_ = (part.to(device) for part in sampler.draw(BATCH))
        error = reader(features) - reader.standardise(motion[:, 1:], style)
        loss = (error.square() * WEIGHT.to(device)).mean()
        optimizer.zero_grad()
        loss.backward()
        guarded_step(step + 1)
        tick(loss.item())
    reader.requires_grad_(False).eval()
    with torch.no_grad():
        predicted = torch.cat([reader(c.mel[None].float().to(device))[0, : len(c.motion)] for c in clips])
        real = [reader.standardise(c.motion.to(device), c.style.to(device)) for c in clips]
        reader.fit_gain(torch.cat(real), predicted, share)
