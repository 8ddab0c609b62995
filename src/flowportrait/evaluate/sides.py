"""The two families of sync experts: who they learn from and what they see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from flowportrait.corpus.clip import Clip
from flowportrait.errors import BadInput
from flowportrait.evaluate.augment import jitter_motion, jitter_patches, reencoded
from flowportrait.evaluate.sync import SyncExpert as PixelExpert
from flowportrait.reward.sync import SyncExpert as MotionExpert
from flowportrait.reward.sync import lower_face
from flowportrait.training.joint_embedding import JointEmbedding


@dataclass(frozen=True)
class Side:
    """A family: its split of the corpus, the input it reads from a clip, how that input is jittered, its
    network."""

    split: str
    views: Callable[[Clip], list[torch.Tensor]]
    jitter: Callable[[torch.Tensor, np.random.Generator], torch.Tensor]
    network: type[JointEmbedding]
    steps: int
    clips: int


def _patch_views(clip: Clip) -> list[torch.Tensor]:
    return [torch.from_numpy(clip.mouth), torch.from_numpy(reencoded(clip.mouth, 26 + len(clip.audio) % 11))]


def _motion_views(clip: Clip) -> list[torch.Tensor]:
    return [lower_face(clip.landmarks, clip.blendshapes)]


SIDES = {
    "evaluation": Side("evaluation", _patch_views, jitter_patches, PixelExpert, steps=700, clips=20),
    "reward": Side("reward", _motion_views, jitter_motion, MotionExpert, steps=3000, clips=32),
}


def side_named(name: str) -> Side:
    """The family of that name.

    Raises:
        BadInput: there is no such family.
    """
    if name not in SIDES:
        raise BadInput(f"Unknown side '{name}': choose evaluation or reward.")
    return SIDES[name]
