"""What an AR-Flow generator is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowportrait.codec.basis import MOTION_DIM

STYLE_DIM = 19
"""Sixteen lower-face means of a speaker, and log amplitudes of lips, brows and head."""


@dataclass(frozen=True)
class GeneratorConfig:
    """The settings of a generator's networks and of sampling from it."""

    earlier_keys = (("sees", "use_vision"),)
    """Keys of version 0.1, and today's."""

    hidden: int = 192
    """Width of the causal backbone."""
    layers: int = 4
    heads: int = 4
    chunk: int = 4
    """Frames drawn at a time; 4 are 160 ms."""
    window: int = 16
    """Chunks a chunk can look back on (sliding attention); 16 are 2.56 s."""
    horizon: int = 18
    """Chunks after which the backbone starts afresh from the last frame: the longest it was trained on. Layers of
    sliding attention see further back than one window, into positions never trained, and there the head wanders."""
    backbone: str = ""
    """Folder or hub name of a pretrained model whose decoder takes the place of the small one that ``hidden``,
    ``layers``, ``heads`` and ``window`` describe, such as ``Qwen/Qwen3-0.6B`` or ``Qwen/Qwen2.5-Omni-3B``."""
    adapt: Literal["frozen", "lora", "full"] = "lora"
    """What of a pretrained decoder is trained."""
    lora_rank: int = 16
    use_vision: bool = False
    """Let a portrait's tokens from the pretrained model's vision tower precede the speech."""
    portrait_side: int = 112
    """Pixels of the portrait that the vision tower sees; 112 are 16 tokens at patches of 14 px merged by 2."""
    front_end: Literal["whisper", "mel", "tower"] = "whisper"
    """The audio front end: Whisper's first layer, plain log-mel, or the pretrained model's own audio tower."""
    anchor: bool = True
    """Draw around what a regression tells of the lips (``LipReader``)."""
    audio_width: int = 128
    head_width: int = 320
    head_depth: int = 4
    steps: int = 6
    """Euler steps per chunk when sampling."""
    shift: float = 1.0
    """Schedule shift when sampling; more than 1 spends more steps at high noise."""
    guidance: float = 1.5
    """Classifier-free guidance on the audio; 1 is none and costs half."""

    ease: float = 0.15
    """How far chunks are joined without a jolt (see ``codec/delivery.py``); 0 leaves them as they are drawn."""

    spread_brows: float = 1.0
    """Standard deviation of the noise that brows start from. The sampler leaves brows, eyes and head stiller than real
    ones; more noise gives the amplitude back. Lips start from 1."""
    spread_eyes: float = 1.0
    spread_head: float = 1.0

    @property
    def latent_dim(self) -> int:
        """Numbers per chunk."""
        return self.chunk * MOTION_DIM
