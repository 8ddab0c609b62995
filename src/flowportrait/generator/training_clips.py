"""The clips that supervised training learns from: front-end features computed once, and motion as training targets.

The front end is frozen, so its features of a clip never change; augmentation with other voices and rooms happens before
it, in a fixed number of variants per clip. Every variant is a clip of its own, with motion as fast as its sound.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from flowportrait.corpus.clip import Clip
from flowportrait.corpus.motion_set import MotionClip, load_motion, stretch
from flowportrait.devices import device_of
from flowportrait.errors import BadInput
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.augment import augment, augment_wave
from flowportrait.generator.portrait_tokens import with_portraits
from flowportrait.generator.pretrain_config import PretrainConfig
from flowportrait.media.mel import MELS_PER_FRAME, level, log_mel
from flowportrait.written import complete

_BABBLE = 40


def extract_features(
    model: ARFlow, corpus: Path, splits: Collection[str], variants: int, seed: int
) -> list[MotionClip]:
    """Load clips of the splits with ``mel`` replaced by ``model.audio_features`` ``[T, features]`` in half precision:
    first all of them clean, then ``variants`` times augmented; with portraits for a model with vision.

    Raises:
        BadInput: see ``load_motion`` and ``with_portraits``.
    """
    clips = load_motion(corpus, splits)
    if model.vision is not None:
        clips = with_portraits(model, corpus, clips)
    featured = [replace(clip, mel=_features(model, clip.mel)) for clip in clips]
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    if not variants:
        return featured
    sounds = [level(Clip.load(corpus / "clips" / f"{clip.name}.safetensors").audio) for clip in clips]
    babble = [sounds[int(i)] for i in rng.integers(len(sounds), size=_BABBLE)]
    total = track(range(variants * len(clips)), description="hearing", console=Console(stderr=True))
    for turn in total:
        clip, sound = clips[turn % len(clips)], sounds[turn % len(clips)]
        wave, speed = augment_wave(sound, babble, rng)
        mel = augment(log_mel(level(wave))[None], generator)[0]
        frames = min(len(mel) // MELS_PER_FRAME, round(len(clip.motion) / speed))
        motion = stretch(clip.motion, frames)
        featured.append(replace(clip, motion=motion, mel=_features(model, mel[: frames * MELS_PER_FRAME])))
    return featured


def save_clips(path: Path, clips: list[MotionClip]) -> None:
    """Write the clips, so that a resumed run need not compute their features again."""
    with complete(path) as partial:
        torch.save([asdict(clip) for clip in clips], partial)


def load_clips(path: Path) -> list[MotionClip]:
    """Read what ``save_clips`` wrote."""
    return [MotionClip(**clip) for clip in torch.load(path, weights_only=True)]


@torch.no_grad()
def _features(model: ARFlow, mel: torch.Tensor) -> torch.Tensor:
    return model.audio_features(mel[None])[0].half().cpu()


def with_lip_targets(model: ARFlow, clips: list[MotionClip], share: float) -> list[MotionClip]:
    """Replace the clips' lip motion by what the generator is to learn (see ``LipReader``)."""
    reader = model.lip_reader
    if reader is None or share == 1.0:
        return clips

    def target(clip: MotionClip) -> torch.Tensor:
        features = clip.mel[None, : len(clip.motion)].float()
        motion, features, style = (
            part.to(device_of(reader)) for part in (clip.motion[None], features, clip.style[None])
        )
        return reader.training_target(motion, features, style, share)[0].cpu()

    return [replace(clip, motion=target(clip)) for clip in clips]


def load_held_out(model: ARFlow, corpus: Path, config: PretrainConfig) -> list[MotionClip]:
    """Load the clips that the held-out loss is measured on; none, with a warning, if the corpus has none."""
    try:
        clips = extract_features(model, corpus, config.held_out, 0, config.seed)
    except BadInput:
        warnings.warn(
            f"{corpus} has no clips in the split {', '.join(config.held_out)}: overfitting will not be seen.",
            stacklevel=3,
        )
        return []
    return [clip for clip in clips if len(clip.motion) > config.windows[0]]


def typical_style(clips: list[MotionClip]) -> torch.Tensor:
    """Median style over speakers ``[19]``."""
    return torch.stack(list({clip.speaker: clip.style for clip in clips}.values())).median(0).values
