"""Small drawings for rewards: every row of a batch on its own portrait, a few frames of it, when one asks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flowportrait.codec.motion_codec import MotionCodec
from flowportrait.media.portrait import Portrait


class Drawing:
    """A ``Draw`` that also knows its ``places`` and ``portraits``; ``which``: the codec of each row."""

    def __init__(self, codecs: Sequence[MotionCodec], which: Sequence[int], size: int) -> None:
        self.codecs = [codecs[index] for index in which]
        self.size = size

    @property
    def portraits(self) -> list[Portrait]:
        """Whose face each row is."""
        return [codec.portrait for codec in self.codecs]

    def __call__(self, motion: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        """Frames ``[B, F, 3, S, S]`` in [0, 1] of motion ``[B, T, 30]``."""
        clips = []
        for codec, row in zip(self.codecs, motion, strict=True):
            frames = [torch.from_numpy(frame.copy()) for frame in codec.decode(row[list(indices)])]
            clips.append(torch.stack(frames))
        return torch.stack(clips).permute(0, 1, 4, 2, 3).float() / 255

    def places(self, motion: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        """Landmarks ``[B, F, 478, 2]`` in the pixels of those frames."""
        rows = [
            torch.from_numpy(codec.landmarks(row[list(indices)])[..., :2] * (self.size / len(codec.portrait.crop)))
            for codec, row in zip(self.codecs, motion, strict=True)
        ]
        return torch.stack(rows).float()
