"""Sound on its way to the generator, kept as it came until the frames it belongs to are written.

pieces, own rate and channels ─┬─► mono at 16 kHz ─► generator
                               └─► kept ─► frame(i), own rate and channels ─► video
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import av
import numpy as np

from flowportrait.media.audio import SAMPLE_RATE, Sound
from flowportrait.media.downmix import to_mono
from flowportrait.media.video import FPS


class Tape:
    """Iterate over it for the pieces at 16 kHz; ``frame`` plays what went by."""

    def __init__(self, pieces: Iterable[Sound | np.ndarray]) -> None:
        """pieces: with their own rate and channels, always the same, or samples ``[n]`` mono at 16 kHz."""
        self.pieces = pieces
        self.kept = Sound(np.zeros((1, 0), np.float32), SAMPLE_RATE, "mono")
        self.start = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        return speech_of(self._keeping())

    def _keeping(self) -> Iterator[Sound]:
        for piece in self.pieces:
            sound = piece if isinstance(piece, Sound) else Sound(piece[None], SAMPLE_RATE, "mono")
            together = [self.kept.samples, sound.samples] if self.kept.samples.size else [sound.samples]
            self.kept = Sound(np.concatenate(together, axis=1), sound.rate, sound.layout)
            yield sound

    def frame(self, index: int) -> Sound:
        """The sound of a video frame, 40 ms at most; what was before it is let go."""
        rate = self.kept.rate
        start, end = (round(number * rate / FPS) for number in (index, index + 1))
        self.kept = Sound(self.kept.samples[:, start - self.start :], rate, self.kept.layout)
        self.start = start
        return Sound(self.kept.samples[:, : end - start], rate, self.kept.layout)


def speech_of(pieces: Iterable[Sound]) -> Iterator[np.ndarray]:
    """What the generator hears of sound that comes in pieces of one rate: samples ``[n]`` float32, mono at 16 kHz."""
    resampler: Any = None
    for piece in pieces:
        wave = to_mono(piece.samples.T, av.AudioLayout(piece.layout)).clip(-1.0, 1.0)
        if piece.rate == SAMPLE_RATE:
            yield wave
            continue
        if resampler is None:
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[None], np.float32), format="fltp", layout="mono")
        frame.sample_rate = piece.rate
        yield _concatenated(resampler.resample(frame))
    if resampler is not None:
        yield _concatenated(resampler.resample(None))


def joined(pieces: Iterable[Sound]) -> Sound:
    """Pieces of one rate and layout, at least one, as one sound."""
    held = list(pieces)
    return Sound(np.concatenate([piece.samples for piece in held], axis=1), held[0].rate, held[0].layout)


def _concatenated(frames: list[Any]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *(frame.to_ndarray()[0] for frame in frames)])
