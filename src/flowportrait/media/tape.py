"""Sound on its way to the generator, kept until the frames it belongs to are written."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from flowportrait.media.video import SAMPLES_PER_FRAME


class Tape:
    """Iterate over it for the pieces; ``frame`` plays what went by."""

    def __init__(self, pieces: Iterator[np.ndarray]) -> None:
        self.pieces = pieces
        self.kept = np.zeros(0, np.float32)
        self.start = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for piece in self.pieces:
            self.kept = np.concatenate([self.kept, piece])
            yield piece

    def frame(self, index: int) -> np.ndarray:
        """Samples ``[≤ 640]`` of a video frame; those before it are let go."""
        self.kept = self.kept[index * SAMPLES_PER_FRAME - self.start :]
        self.start = index * SAMPLES_PER_FRAME
        return self.kept[:SAMPLES_PER_FRAME]
