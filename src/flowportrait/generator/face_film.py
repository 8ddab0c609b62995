"""Footage as a picture generator learns from it: framed faces as autoencoder latents, and audio features with them.

The frame stands still while the head moves in it: one crop per clip, from the landmarks' median.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from flowportrait.codec.vae_codec import VaeCodec, VideoLatents
from flowportrait.corpus.clip import Clip
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.patch_flow import motion_generator_features
from flowportrait.media.align import to_canonical
from flowportrait.media.crop import sample_crop
from flowportrait.media.mel import level, log_mel
from flowportrait.media.video import iter_frames

WIDTH, CENTRE = 2.8, (0.0, 0.45)
"""The crop's width, and its middle below the eyes, in outer-eye-corner distances."""
PATCH = 2
"""Latent cells along a side of a patch."""


@dataclass(frozen=True)
class Film:
    """latents ``[T, D]`` as ``patches`` makes them; features ``[T, 144]``; the speaker's name."""

    latents: torch.Tensor
    features: torch.Tensor
    speaker: str


def framing(landmarks: np.ndarray, side: int) -> np.ndarray:
    """Affine map ``[2, 3]`` from a picture with these landmarks ``[478, 3]`` to the crop of ``side`` pixels."""
    matrix = to_canonical(landmarks) * (side / WIDTH)
    matrix[:, 2] += side / 2 - np.array(CENTRE) * side / WIDTH - 0.5
    return matrix


def framed(video: Path, clip: Clip, side: int, frames: int) -> Iterator[np.ndarray]:
    """The first ``frames`` frames of a prepared clip's video, cut to the face ``[side, side, 3]`` uint8."""
    matrix = framing(np.median(clip.landmarks, 0), side)
    for _, frame in zip(range(min(frames, len(clip))), iter_frames(video), strict=False):
        yield sample_crop(frame, matrix, side, cv2.BORDER_REPLICATE)


def film(video: Path, clip: Clip, speaker: str, codec: VaeCodec, model: ARFlow, side: int, frames: int) -> Film:
    """Latents and sound of a clip, cut to whole chunks of the motion generator."""
    chunk = model.config.chunk
    pictures = np.stack(list(framed(video, clip, side, frames)))
    features = motion_generator_features(model, log_mel(level(clip.audio))[None, : len(clip) // chunk * chunk * 4])[0]
    length = min(len(pictures), len(features))
    return Film(patches(codec.encode(pictures[:length]).values), features[:length], speaker)


def patches(values: torch.Tensor) -> torch.Tensor:
    """Latents ``[T, C, h, w]`` as rows of patches ``[T, h·w/4 · 4C]``."""
    return F.pixel_unshuffle(values, PATCH).flatten(2).mT.flatten(1)


def pictures(latents: torch.Tensor, codec: VaeCodec, side: int) -> Iterator[np.ndarray]:
    """Frames ``[side, side, 3]`` uint8 of patches ``[T, D]``."""
    cells = side // codec.spatial // PATCH
    values = F.pixel_shuffle(latents.unflatten(1, (cells**2, -1)).mT.unflatten(2, (cells, cells)), PATCH)
    yield from codec.decode(VideoLatents(values, len(values), side, side))
