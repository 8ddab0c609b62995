"""Finished videos of systems that are compared: the same speech, the same portraits in turn, the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.material import portraits
from flowportrait.data.corpus import FaceClip
from flowportrait.errors import BadInput
from flowportrait.evaluation.measure import measure_video
from flowportrait.evaluation.metrics import MetricRow
from flowportrait.media.write_video import write_video
from flowportrait.models.conditioning import RewardSteering
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.motion_basis import MotionBasis
from flowportrait.rendering.renderer import MotionCodec

SIZE = 256
"""Side of the videos in pixels."""
Generate = Callable[[np.ndarray, int], torch.Tensor]
"""Motion ``[T, 30]`` of speech ``[N]`` at 16 kHz and a seed."""


def codecs(footage: Path, count: int | None = None, retouch: bool = True) -> list[MotionCodec]:
    """Return the codecs of the portraits of a footage folder, at most ``count``."""
    return [MotionCodec(portrait, SIZE, retouch=retouch) for portrait in portraits(footage, SIZE, count)]


def named_checkpoints(words: Sequence[str]) -> dict[str, str]:
    """Return checkpoints by name from words that are each a name, a folder, or NAME=FOLDER.

    Raises:
        BadInput: two checkpoints have one name.
    """
    found: dict[str, str] = {}
    for word in words:
        name, is_named, folder = word.partition("=")
        name = name if is_named else Path(word).name
        if name in found:
            raise BadInput(f"Two checkpoints are called {name}: give them names, as in first={word}.")
        found[name] = folder if is_named else word
    return found


def generate_motion(
    animator: Animator, audio: np.ndarray, seed: int, steering: RewardSteering | None = None
) -> torch.Tensor:
    """Return the motion ``[T, 30]`` of speech ``[N]`` at 16 kHz as the product delivers it."""
    return torch.cat(list(animator.motion(audio, seed=seed, steering=steering)))


def real_motion(clip: FaceClip) -> torch.Tensor:
    """Return the speaker's own motion ``[T, 30]``."""
    motion: torch.Tensor = MotionBasis.load().encode(clip.landmarks, clip.blendshapes)[0]
    return motion


def draw(path: Path, codec: MotionCodec, motion: Callable[[], torch.Tensor], audio: np.ndarray) -> Path:
    """Draw motion to a file, unless the file is there already, and return its path."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, codec.decode(motion()), audio)
    return path


def draw_and_measure(
    path: Path, codec: MotionCodec, motion: Callable[[], torch.Tensor], audio: np.ndarray, cache: Path | None = None
) -> MetricRow:
    """Draw motion to a file, unless the file is there already, and return the evaluation's metrics of it."""
    return measure_video(draw(path, codec, motion, audio), cache).row
