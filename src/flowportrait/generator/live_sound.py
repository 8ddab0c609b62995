"""Live sound to levelled log-mel, the same however it is cut into pieces.

    samples ─► frames of 40 ms ─► common loudness (last ten seconds) ─► log-mel columns, loudness per frame

The first seven frames (a chunk and its look-ahead) share the loudness heard in them; after that, each frame is
levelled by what was heard up to its end.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from flowportrait.media.mel import HOP, MELS_PER_FRAME, SAMPLES_PER_FRAME, gain, log_mel

FIRST_FRAMES = 7
MEMORY_BLOCKS = 1000
_UNSEEN = 1
"""Columns of the last frame whose window reaches past it."""


@dataclass
class LiveSound:
    """Levels and analyses sound; its fields are its state."""

    pending: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """Samples of a frame under way, or of the first frames."""
    power: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Mean power of 10 ms blocks of the last ten seconds."""
    gain: float = 0.0
    frames: int = 0
    """Frames levelled."""
    tail: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """Levelled samples of the last two frames."""

    def push(self, samples: np.ndarray, last: bool = False) -> tuple[torch.Tensor, list[float], np.ndarray]:
        """Take 16 kHz samples ``[N]``; returns the new log-mel columns ``[C, 80]``, and the loudness and levelled
        samples ``[640 F]`` of new frames.

        After F frames, 4 F − 1 columns are known. ``last`` releases the first frames even if they are fewer than
        seven.
        """
        waiting = np.concatenate([self.pending, samples.astype(np.float32, copy=False)])
        count = len(waiting) // SAMPLES_PER_FRAME
        if self.frames == 0 and count < FIRST_FRAMES and not last:
            self.pending = waiting
            return torch.zeros(0, 80), [], waiting[:0]
        self.pending = waiting[count * SAMPLES_PER_FRAME :]
        if count == 0:
            return torch.zeros(0, 80), [], waiting[:0]
        levelled = self._level(waiting[: count * SAMPLES_PER_FRAME].reshape(count, SAMPLES_PER_FRAME))
        before = len(self.tail) // SAMPLES_PER_FRAME
        heard = np.concatenate([self.tail, levelled.ravel()])
        known = max(0, self.frames * MELS_PER_FRAME - _UNSEEN)
        start = (self.frames - before) * MELS_PER_FRAME
        self.frames += count
        columns = log_mel(heard)[known - start : (self.frames * MELS_PER_FRAME - _UNSEEN) - start]
        self.tail = heard[-2 * SAMPLES_PER_FRAME :]
        loudness = np.sqrt((levelled.astype(np.float64) ** 2).mean(1))
        return columns, loudness.tolist(), levelled.ravel()

    def _level(self, frames: np.ndarray) -> np.ndarray:
        """Frames ``[F, 640]`` at speech's common loudness; within a frame the gain moves linearly."""
        blocks = (frames.astype(np.float64).reshape(len(frames), -1, HOP) ** 2).mean(2)
        result = np.empty_like(frames)
        first = 0
        if self.frames == 0:
            first = min(FIRST_FRAMES, len(frames))
            self._remember(blocks[:first].ravel())
            self.gain = gain(self.power)
            result[:first] = frames[:first] * self.gain
        ramp = np.arange(1, SAMPLES_PER_FRAME + 1) / SAMPLES_PER_FRAME
        for index in range(first, len(frames)):
            self._remember(blocks[index])
            wanted = gain(self.power)
            result[index] = frames[index] * (self.gain + (wanted - self.gain) * ramp)
            self.gain = wanted
        return result.clip(-1.0, 1.0)

    def _remember(self, power: np.ndarray) -> None:
        self.power = np.concatenate([self.power, power])[-MEMORY_BLOCKS:]
