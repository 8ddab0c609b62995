"""Prompts for a rollout: windows of speech, each spoken by one of the portraits. No video is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flowportrait.flow.noise import seed_of
from flowportrait.media.mel import MELS_PER_FRAME, level, log_mel


@dataclass(frozen=True)
class Item:
    """Speech as log-mel ``[4T, 80]`` (T as long as the recording) and the index of a portrait."""

    mel: torch.Tensor
    portrait: int


def speech(audio: np.ndarray, frames: int) -> torch.Tensor:
    """Levelled log-mel of a recording ``[N]``, repeated if it is shorter than ``frames``."""
    mel = log_mel(level(audio))
    times = -(-frames * MELS_PER_FRAME // len(mel))
    return mel.repeat(times, 1)


def draw_items(
    items: Sequence[Item], count: int, frames: int, seed: int, iteration: int
) -> tuple[torch.Tensor, list[int]]:
    """``count`` windows ``[count, 4·frames, 80]`` and their portraits; a function of seed and iteration alone."""
    generator = torch.Generator().manual_seed(seed_of(seed, iteration, 0))
    order = torch.randperm(len(items), generator=generator).tolist()
    chosen = [items[order[i % len(items)]] for i in range(count)]
    windows = []
    for item in chosen:
        last = len(item.mel) // MELS_PER_FRAME - frames
        start = int(torch.randint(last + 1, (), generator=generator)) * MELS_PER_FRAME
        windows.append(item.mel[start : start + frames * MELS_PER_FRAME])
    return torch.stack(windows), [item.portrait for item in chosen]
