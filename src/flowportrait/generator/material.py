"""What supervised training learns from and is watched on."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import torch

from flowportrait.corpus.motion_set import MotionClip
from flowportrait.errors import BadInput
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.hearing import hear
from flowportrait.generator.pretrain_config import PretrainConfig


def clearer(model: ARFlow, clips: list[MotionClip], share: float) -> list[MotionClip]:
    """Clips with the lip motion that the generator is to learn (see ``lip_reader``)."""
    reader = model.lip_reader
    if reader is None or share == 1.0:
        return clips

    def target(clip: MotionClip) -> torch.Tensor:
        heard = clip.mel[None, : len(clip.motion)].float()
        return reader.clearer(clip.motion[None], heard, clip.style[None], share)[0]

    return [replace(clip, motion=target(clip)) for clip in clips]


def load_held_out(model: ARFlow, corpus: Path, config: PretrainConfig) -> list[MotionClip]:
    """Clips to watch the loss on; none, with a warning, if the corpus sets none apart."""
    try:
        clips = hear(model, corpus, config.held_out, 0, config.seed)
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
