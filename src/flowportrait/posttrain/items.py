"""Prompts for a rollout: windows of speech, each spoken by one of the portraits. No video is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from flowportrait.flow.noise import seed_of
from flowportrait.media.mel import MELS_PER_FRAME, SAMPLES_PER_FRAME, frame_count, level, log_mel


@dataclass(frozen=True)
class Item:
    """Speech as log-mel ``[4T, 80]`` (T as long as the recording), the index of a portrait, where it is known how it
    was really spoken, that motion ``[T, 30]``, for judges that listen the sound itself ``[640 T]``, and of disturbed
    speech what the policy may hear in its place, ``[4T, 80]`` each."""

    mel: torch.Tensor
    portrait: int
    motion: torch.Tensor | None = None
    audio: torch.Tensor | None = None
    disturbed: tuple[torch.Tensor, ...] = ()


class Windows(NamedTuple):
    """mel ``[G, 4·frames, 80]``; portraits, one per row; motion ``[G, 1 + frames, 30]`` with the frame before, where
    every item has one; audio ``[G, 640·frames]`` likewise; heard, like mel, where it is not mel that is heard."""

    mel: torch.Tensor
    portraits: list[int]
    motion: torch.Tensor | None
    audio: torch.Tensor | None = None
    heard: torch.Tensor | None = None


def speech(audio: np.ndarray, frames: int) -> torch.Tensor:
    """Levelled log-mel of a recording ``[N]``, repeated if it is shorter than ``frames``."""
    return filled(log_mel(level(audio)), frames)


def filled(mel: torch.Tensor, frames: int) -> torch.Tensor:
    """Log-mel ``[4T, 80]``, repeated if it is shorter than ``frames``."""
    times = -(-frames * MELS_PER_FRAME // len(mel))
    return mel.repeat(times, 1)


def sound(audio: np.ndarray, frames: int) -> torch.Tensor:
    """The recording ``[N]`` itself, as long as its ``speech`` and repeated with it."""
    wave = torch.zeros(frame_count(audio) * SAMPLES_PER_FRAME)
    wave[: len(audio)] = torch.from_numpy(audio)
    return wave.repeat(-(-frames * SAMPLES_PER_FRAME // len(wave)))


def draw_items(items: Sequence[Item], count: int, frames: int, seed: int, iteration: int) -> Windows:
    """``count`` windows of speech; a function of seed and iteration alone."""
    generator = torch.Generator().manual_seed(seed_of(seed, iteration, 0))
    order = torch.randperm(len(items), generator=generator).tolist()
    chosen = [items[order[i % len(items)]] for i in range(count)]
    windows, motions, sounds, hearings = [], [], [], []
    for item in chosen:
        # A real clip's window begins one frame in: the frame before it is where the motion continues from.
        earliest = 0 if item.motion is None else 1
        last = len(item.mel) // MELS_PER_FRAME - frames - earliest
        first = earliest + int(torch.randint(last + 1, (), generator=generator))
        window = slice(first * MELS_PER_FRAME, (first + frames) * MELS_PER_FRAME)
        windows.append(item.mel[window])
        if item.disturbed:
            choices = (item.mel, *item.disturbed)
            hearings.append(choices[int(torch.randint(len(choices), (), generator=generator))][window])
        if item.motion is not None:
            motions.append(item.motion[first - 1 : first + frames])
        if item.audio is not None:
            sounds.append(item.audio[first * SAMPLES_PER_FRAME : (first + frames) * SAMPLES_PER_FRAME])
    real = torch.stack(motions) if len(motions) == count else None
    sound = torch.stack(sounds) if len(sounds) == count else None
    heard = torch.stack(hearings) if len(hearings) == count else None
    return Windows(torch.stack(windows), [item.portrait for item in chosen], real, sound, heard)
