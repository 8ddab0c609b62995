"""What is judged: a clip with its sound, from a file or from a post-training batch, and its address by content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.media.bounded import LOCAL, ClipLimits, read_clip
from flowportrait.media.face import FaceTracker, bridge
from flowportrait.media.mel import level, log_mel
from flowportrait.media.video import FPS, SAMPLES_PER_FRAME
from flowportrait.reward.batch import Failure, RewardBatch

LEAST_SEEN = 0.8
"""Share of frames that must show a face."""
SHORTEST = 10
"""Frames."""


@dataclass(frozen=True)
class Exhibit:
    """frames ``[T, H, W, 3]`` uint8 at 25 fps; audio ``[640 T]`` float32 16 kHz; name and generator for reports;
    known: the same clip as a batch of one row, where whoever made it has one; places: its landmarks
    ``[T, 478, 2]`` px where known."""

    frames: np.ndarray
    audio: np.ndarray
    name: str = "clip"
    generator: str = ""
    known: RewardBatch | None = field(default=None, repr=False, compare=False)
    places: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or self.frames.dtype != np.uint8 or not len(self.frames):
            raise BadInput(f"{self.name} is {self.frames.dtype} {self.frames.shape}: give RGB uint8 [T, H, W, 3].")
        fitted = np.zeros(len(self.frames) * SAMPLES_PER_FRAME, np.float32)
        fitted[: len(self.audio)] = self.audio[: len(fitted)]
        object.__setattr__(self, "audio", fitted)

    @classmethod
    def from_video(cls, path: Path, generator: str = "", limits: ClipLimits = LOCAL) -> Exhibit:
        """A finished file; without a sound track it is silent.

        Raises:
            BadInput: the file cannot be read, or exceeds the limits.
        """
        frames, audio = read_clip(path, limits)
        return cls(frames, np.zeros(0, np.float32) if audio is None else audio, path.name, generator)

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def seconds(self) -> float:
        return len(self.frames) / FPS

    @cached_property
    def digest(self) -> str:
        """SHA-256 of pictures and sound."""
        found = hashlib.sha256(repr(self.frames.shape).encode())
        found.update(self.frames.tobytes())
        found.update(self.audio.tobytes())
        return found.hexdigest()

    @cached_property
    def _tracked(self) -> tuple[np.ndarray, float]:
        if self.places is not None:
            return self.places.astype(np.float32), 1.0
        with FaceTracker() as tracker:
            faces = tracker.track(self.frames)
        seen = float(faces.valid.mean())
        return (bridge(faces.landmarks, faces.valid)[..., :2] if seen else faces.landmarks[..., :2]), seen

    @property
    def landmarks(self) -> np.ndarray:
        """``[T, 478, 2]`` px, gaps filled in."""
        return self._tracked[0]

    @cached_property
    def batch(self) -> RewardBatch:
        """The same clip as rewards see it, one row."""
        return self.known or RewardBatch.from_frames([self.frames], [self.audio])

    def with_sound(self, audio: np.ndarray, name: str) -> Exhibit:
        """The same pictures under another sound; what was found in the pictures is kept."""
        made = Exhibit(self.frames, audio, name, self.generator, places=self.places)
        seen = self.known or self.__dict__.get("batch")
        if seen is not None:
            mel = log_mel(level(made.audio))[None]
            known = replace(seen, mel=mel, audio=torch.from_numpy(made.audio)[None])
            made = replace(made, known=known)
        return made

    def shortness(self) -> Failure | None:
        """Whether there is too little to judge."""
        if len(self) < SHORTEST:
            return Failure("too_short", f"{self.name} has {len(self)} frames, fewer than {SHORTEST}")
        return None

    def trouble(self) -> Failure | None:
        """Why no one can judge this, or None."""
        short = self.shortness()
        if short is not None:
            return short
        if self.known is not None and 0 in self.known.unseen:
            return self.known.unseen[0]
        if self._tracked[1] < LEAST_SEEN:
            return Failure("no_face", f"{self.name} shows a face in {self._tracked[1]:.0%} of {len(self)} frames")
        return None

    def silent(self) -> bool:
        """Whether there is nothing to hear."""
        return float(np.abs(self.audio).max(initial=0.0)) < 1e-3


def exhibits_of(batch: RewardBatch, names: Sequence[str] = ()) -> list[Exhibit]:
    """Every row of a batch that can draw and has its sound, drawn in full.

    Raises:
        BadInput: it cannot draw, or has no sound.
    """
    if "frames" not in batch.has or batch.audio is None:
        raise BadInput("A batch is judged by pictures and sound: give it a drawing and its audio.")
    every = tuple(range(batch.motion.shape[1]))
    pictures = (batch.frames(every) * 255).round().clamp(0, 255).byte().permute(0, 1, 3, 4, 2).numpy()
    places = batch.places(every).numpy() if "places" in batch.has else None
    return [
        Exhibit(
            pictures[row],
            batch.audio[row].numpy().astype(np.float32),
            names[row] if names else f"sample {row}",
            known=batch.select(torch.tensor([row])),
            places=None if places is None else places[row],
        )
        for row in range(len(batch))
    ]
