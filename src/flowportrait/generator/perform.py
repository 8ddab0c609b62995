"""Whole performances, many at once, as they are delivered: what measurements are made on."""

from __future__ import annotations

import numpy as np
import torch

from flowportrait.codec.basis import LOWER
from flowportrait.codec.calm import Calm
from flowportrait.codec.ease import ease
from flowportrait.generator.arflow import ARFlow, Condition
from flowportrait.generator.enhancer import Enhancer, enhanced
from flowportrait.generator.intensity import intensify
from flowportrait.generator.sample import generate
from flowportrait.generator.silence import speech_gate
from flowportrait.media.mel import level, log_mel


@torch.no_grad()
def perform(
    model: ARFlow,
    sounds: np.ndarray,
    seeds: list[int],
    style: torch.Tensor | None = None,
    intensity: float = 1.0,
    enhancer: Enhancer | None = None,
) -> torch.Tensor:
    """Motion ``[B, T, 30]``, calmed, with lips at rest in silence and chunks joined, for 16 kHz sounds ``[B, N]``, N
    whole chunks; style ``[19]``, intensity as ``intensify`` takes it. ``GenerationSession`` for many at once, but for
    its gain, which here is one for the whole sound."""
    own = None if style is None else style[None]
    waves = [level(sound) for sound in sounds]
    mels: list[torch.Tensor] = [log_mel(wave) for wave in waves]
    softer: list[list[float] | None] = [None] * len(mels)
    if enhancer is not None:
        heard = [enhanced(enhancer, mel, wave) for mel, wave in zip(mels, waves, strict=True)]
        mels, softer = [mel for mel, _ in heard], [share for _, share in heard]
    known = [model.condition(mel[None], own) for mel in mels]
    condition = Condition(*(torch.cat(parts) for parts in zip(*known, strict=True)))
    motion = Calm()(torch.cat(list(generate(model, intensify(condition, intensity), seeds)), 1))
    gates = np.stack([speech_gate(sound, share) for sound, share in zip(sounds, softer, strict=True)])
    motion[..., LOWER] *= torch.from_numpy(gates)[..., None]
    return ease(motion, model.config.chunk, model.config.ease)
