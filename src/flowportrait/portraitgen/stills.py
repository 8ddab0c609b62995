"""Still pictures: as a judge sees them, and as rewards see samples (a clip of one frame without sound)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from flowportrait.codec.basis import MOTION_DIM
from flowportrait.media.face import N_BLENDSHAPES, FaceTracker
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS
from flowportrait.portraitgen.look import Look, glance, look
from flowportrait.portraitgen.portrait_flow import as_frames
from flowportrait.reward.batch import Failure, RewardBatch
from flowportrait.reward.pixels import pair_indices

STILL_ASPECTS = ("omni_reward", "ai_portrait")
"""What is graded of a still: the picture, and the person in it."""


@dataclass(frozen=True)
class Still:
    """A picture ``[H, W, 3]`` uint8 RGB, the prompt it was made for (empty: unknown) and a name for reports."""

    picture: np.ndarray
    prompt: str = ""
    name: str = "picture"
    generator: str = ""

    @cached_property
    def look(self) -> Look:
        """The face in the picture, looked for once."""
        return look(self.picture)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the picture, in hexadecimal."""
        return hashlib.sha256(self.picture.tobytes() + repr(self.picture.shape).encode()).hexdigest()

    def validation_error(self) -> Failure | None:
        """Return None: every picture is judged, with a face or without."""
        return None


@dataclass
class StillBatch(RewardBatch):
    """prompts: what each picture was made for, where that is known; framed: the landmarks ``[478, 3]`` px that each
    picture's face should have, where a generator draws framed faces: they are then believed and not looked for."""

    prompts: Sequence[str] = ()
    framed: Sequence[np.ndarray] = ()

    @cached_property
    def looks(self) -> list[Look]:
        """Each picture looked at once, however many rewards ask."""
        pictures = self.frames((0,))[:, 0]
        if not self.framed:
            return looks_at(pictures)
        framed = zip(as_frames(pictures), self.framed, strict=True)
        return [Look.at(picture, [(points, np.zeros(N_BLENDSHAPES, np.float32))]) for picture, points in framed]


def still_batch(
    pictures: torch.Tensor, prompts: Sequence[str] = (), framed: Sequence[np.ndarray] = (), **known: Any
) -> StillBatch:
    """Pictures ``[B, 3, H, W]`` in [0, 1]; ``known``: what else a batch may have (group, latents, policy, …)."""

    def draw(_: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        return pictures[:, None].expand(-1, len(indices), -1, -1, -1)

    rest = torch.zeros(len(pictures), 1, MOTION_DIM)
    sound = torch.zeros(len(pictures), MELS_PER_FRAME, N_MELS)
    return StillBatch(rest, sound, draw, prompts=prompts, framed=framed, **known)


def looks_at(pictures: torch.Tensor) -> list[Look]:
    """A quick look at each of ``[B, 3, H, W]`` in [0, 1]."""
    with FaceTracker(still=True) as tracker:
        return [glance(np.ascontiguousarray(frame), tracker) for frame in as_frames(pictures)]


def looks_of(batch: RewardBatch) -> list[list[Look]]:
    """Looks at every sample: the one of a still, two of a clip's frames."""
    if isinstance(batch, StillBatch):
        return [[look] for look in batch.looks]
    frames = batch.frames(pair_indices(batch.motion.shape[1])[1::2])
    looks = looks_at(frames.flatten(0, 1))
    return [looks[start : start + frames.shape[1]] for start in range(0, len(looks), frames.shape[1])]
