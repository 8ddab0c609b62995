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
from flowportrait.evaluation.tracking import VideoTracks
from flowportrait.media.audio import SAMPLES_PER_FRAME, read_audio
from flowportrait.media.crop import MOUTH_PATCH, mouth_patch
from flowportrait.media.faces import FaceTracker
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.models.conditioning import RewardSteering
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.motion_basis import MotionBasis
from flowportrait.rendering.renderer import MotionCodec

SIZE = 256
"""Side of the videos in pixels."""
Generate = Callable[[np.ndarray, int], torch.Tensor]
"""Motion ``[T, 30]`` of speech ``[N]`` at 16 kHz and a seed."""
Motion = torch.Tensor | Callable[[], torch.Tensor]
"""Motion ``[T, 30]``, or a function that makes it where it is needed."""


def codecs(footage: Path, count: int | None = None, retouch: bool = True, size: int = SIZE) -> list[MotionCodec]:
    """Return the codecs of the portraits of a footage folder, at most ``count``."""
    return [MotionCodec(portrait, size, retouch=retouch) for portrait in portraits(footage, size, count)]


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


def draw(path: Path, codec: MotionCodec, motion: Motion, audio: np.ndarray) -> Path:
    """Draw motion to a file, unless the file is there already, and return its path."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, codec.decode(motion if isinstance(motion, torch.Tensor) else motion()), audio)
    return path


def draw_and_measure(
    path: Path, codec: MotionCodec, motion: Motion, audio: np.ndarray, cache: Path | None = None
) -> MetricRow:
    """Draw motion to a file, unless the file is there already, and return the evaluation's metrics of it."""
    return measure_video(draw(path, codec, motion, audio), cache).row


def track_mouth(video: Path) -> VideoTracks:
    """Return the tracks that sync and lips in silence are measured on; the other parts stay empty."""
    frames, samples = list(iter_frames(video)), read_audio(video)
    with FaceTracker() as tracker:
        faces = tracker.track(frames)
    patches = [
        mouth_patch(frame, points) if valid else np.zeros(MOUTH_PATCH, np.uint8)
        for frame, points, valid in zip(frames, faces.landmarks, faces.valid, strict=True)
    ]
    none, sound = np.zeros(0), np.zeros(len(frames) * SAMPLES_PER_FRAME, np.float32)
    sound[: len(samples)] = samples[: len(sound)]
    return VideoTracks(
        landmarks=faces.landmarks, blendshapes=faces.blendshapes, valid=faces.valid, mouth=np.array(patches),
        audio=sound, points=none, flow=none, crops=none, crop_at=none, skin=none, still=none, border=none,
        source_fps=none, size=np.array(frames[0].shape[:2]),
    )  # fmt: skip
