"""What a generator hears of its training footage, computed once: clean, and in other voices and rooms.

The front end is frozen, so its features of a clip never change; augmentation happens before it, in a fixed number of
variants per clip. Every variant is a clip of its own, with motion as fast as its sound.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from flowportrait.corpus.clip import Clip
from flowportrait.corpus.motion_set import MotionClip, load_motion, stretch
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.augment import augment, augment_wave
from flowportrait.generator.sight import with_portraits
from flowportrait.media.mel import MELS_PER_FRAME, level, log_mel
from flowportrait.written import complete

_BABBLE = 40


def hear(model: ARFlow, corpus: Path, splits: Collection[str], variants: int, seed: int) -> list[MotionClip]:
    """Clips of the splits with ``mel`` replaced by what ``model.listen`` returns ``[T, features]`` in half precision:
    first all of them clean, then ``variants`` times augmented. For a model that sees, with portraits.

    Raises:
        BadInput: see ``load_motion`` and ``with_portraits``.
    """
    clips = load_motion(corpus, splits)
    if model.vision is not None:
        clips = with_portraits(model, corpus, clips)
    heard = [replace(clip, mel=_listen(model, clip.mel)) for clip in clips]
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    if not variants:
        return heard
    sounds = [level(Clip.load(corpus / "clips" / f"{clip.name}.safetensors").audio) for clip in clips]
    babble = [sounds[int(i)] for i in rng.integers(len(sounds), size=_BABBLE)]
    total = track(range(variants * len(clips)), description="hearing", console=Console(stderr=True))
    for turn in total:
        clip, sound = clips[turn % len(clips)], sounds[turn % len(clips)]
        wave, speed = augment_wave(sound, babble, rng)
        mel = augment(log_mel(level(wave))[None], generator)[0]
        frames = min(len(mel) // MELS_PER_FRAME, round(len(clip.motion) / speed))
        motion = stretch(clip.motion, frames)
        heard.append(replace(clip, motion=motion, mel=_listen(model, mel[: frames * MELS_PER_FRAME])))
    return heard


def remember(path: Path, clips: list[MotionClip]) -> None:
    """Write what was heard, so that a resumed run need not listen again."""
    with complete(path) as partial:
        torch.save([asdict(clip) for clip in clips], partial)


def recall(path: Path) -> list[MotionClip]:
    """What ``remember`` wrote."""
    return [MotionClip(**clip) for clip in torch.load(path, weights_only=True)]


@torch.no_grad()
def _listen(model: ARFlow, mel: torch.Tensor) -> torch.Tensor:
    return model.listen(mel[None])[0].half()
