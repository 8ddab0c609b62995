"""Right pictures at the wrong time: the mouth no longer says what is heard, every single frame is perfect.

seen'[t] = seen[t + δ(t)]       δ: constant (late sound), slow wave (warp), exchange of pieces, steps (freezing)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flowportrait.corruption.footage import Footage
from flowportrait.errors import BadInput
from flowportrait.media.video import FPS, SAMPLES_PER_FRAME

WARP_SECONDS = 1.2
"""Period of the local time-warp."""
PULLDOWN_SECONDS = 0.8
"""A picture freezes this often."""


def offset_audio(clip: Footage, frames: float, seed: int = 0) -> Footage:
    """Sound late by ``frames`` (early if negative), to a sample; the gap is filled with silence.

    Raises:
        BadInput: the clip has no sound.
    """
    if clip.audio is None:
        raise BadInput("'offset' moves the sound: give the clip its audio.")
    late = round(frames * SAMPLES_PER_FRAME)
    moved = np.zeros_like(clip.audio)
    size = max(0, len(moved) - abs(late))
    moved[max(0, late) : max(0, late) + size] = clip.audio[max(0, -late) : max(0, -late) + size]
    return replace(clip, audio=moved)


def warp_time(clip: Footage, frames: float, seed: int = 0) -> Footage:
    """Pictures run ahead and fall behind by up to ``frames`` in slow waves (1.2 s); time never runs backwards."""
    times = np.arange(len(clip), dtype=float)
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi)
    moments = times + frames * np.sin(2 * np.pi * times / (WARP_SECONDS * FPS) + phase)
    return clip.at(np.maximum.accumulate(moments).clip(0, len(clip) - 1))


def swap_segments(clip: Footage, frames: float, seed: int = 0) -> Footage:
    """Pieces of ``frames`` change places two by two: 1 0 3 2 …; what is left at the end stays."""
    size = round(frames)
    order = np.arange(len(clip))
    if size > 0:
        for start in range(0, len(clip) - 2 * size + 1, 2 * size):
            order[start : start + 2 * size] = np.roll(order[start : start + 2 * size], size)
    return clip.at(order.astype(float))


def freeze_frames(clip: Footage, frames: float, seed: int = 0) -> Footage:
    """Every 0.8 s the picture stands still for ``frames`` more frames, then jumps to where it should be."""
    period, held = round(PULLDOWN_SECONDS * FPS), round(frames)
    times = np.arange(len(clip))
    place = times % period
    return clip.at(np.where(place <= held, times - place, times).astype(float))
