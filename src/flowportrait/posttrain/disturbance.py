"""Noise and rooms to post-train in: the policy hears disturbed speech, rewards hear the clean track.

    clean ─┬─► a room, other people or noise ─► (denoiser) ─► policy ─► motion ─┐
           └───────────────────────────────────────────────► rewards ◄──────────┘

A recording is disturbed a few times before a run, and every prompt hears one of them or the clean one, all siblings the
same. Lips and timing of clean speech are what is paid for, so a policy learns what of them can still be heard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.flow.noise import seed_of
from flowportrait.generator.augment import babble, coloured, loudness, reverberate
from flowportrait.generator.enhancer import denoise_mel, load_enhancer
from flowportrait.media.mel import level, log_mel
from flowportrait.posttrain.items import filled

FEW = 20
"""Recordings that are disturbed in a moment, without a word."""


@dataclass(frozen=True)
class Disturbance:
    variants: int = 4
    """Disturbed ones of every recording; a prompt hears one of these or the clean one, all as often."""
    room: float = 0.4
    """Share of the variants that stand in a room (RT60 0.15–0.7 s); the others are in noise, half of it people."""
    lowest: float = 0.0
    """Decibels of speech over noise."""
    highest: float = 15.0
    enhanced: bool = True
    """Whether the shipped denoiser stands in front, as it does in ``animate``."""

    def __post_init__(self) -> None:
        at_least(self, variants=1, room=0, lowest=-20, highest=-20)
        if self.room > 1 or self.highest < self.lowest:
            raise BadInput(
                f"disturbance.room={self.room} must be a share, and disturbance.highest={self.highest} no less than "
                f"disturbance.lowest={self.lowest}."
            )

    def sound(self, speech: np.ndarray, others: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Speech ``[N]`` disturbed once; ``others`` are recordings to make babble of."""
        if rng.random() < self.room:
            return reverberate(speech, rng).astype(np.float32)
        people = len(others) > 0 and rng.random() < 0.5
        noise = babble(others, len(speech), rng) if people else coloured(len(speech), rng)
        below = 10 ** (-rng.uniform(self.lowest, self.highest) / 20)
        return (speech + noise * (loudness(speech) / max(loudness(noise), 1e-9)) * below).astype(np.float32)

    def heard(
        self, waves: Mapping[Path, np.ndarray], frames: int, seed: int
    ) -> Iterator[tuple[Path, tuple[torch.Tensor, ...]]]:
        """Every recording ``[N]`` with what a policy hears of it: of each variant what ``items.speech`` is of the clean
        one, a function of ``seed``."""
        told = track(list(waves.items()), "disturbing", console=Console(stderr=True), disable=len(waves) < FEW)
        for number, (path, speech) in enumerate(told):
            others = [wave for other, wave in waves.items() if other != path]
            mels = []
            for variant in range(self.variants):
                wave = self.sound(speech, others, np.random.default_rng(seed_of(seed, number, variant)))
                wave = level(wave)
                mel = log_mel(wave)
                mels.append(filled(denoise_mel(load_enhancer(), mel, wave)[0] if self.enhanced else mel, frames))
            yield path, tuple(mels)
