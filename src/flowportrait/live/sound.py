"""Sound that a program pushes: any rate, 16-bit or float, mono or stereo, in pieces of any length.

piece ─► read_samples: mono float32 ─► StreamResampler ─► SampleQueue ─► exactly one frame at a time
"""

from __future__ import annotations

from collections import deque

import av
import numpy as np

from flowportrait.errors import BadInput

MIN_RATE, MAX_RATE = 8_000, 192_000
"""Sample rates in Hz that can be pushed."""


def read_samples(samples: np.ndarray | bytes, rate: int) -> np.ndarray:
    """Return pushed sound as mono samples ``[n]`` float32 in [-1, 1].

    Args:
        samples: 16-bit integers or floats, ``[n]``, ``[n, 2]`` or ``[2, n]``; or bytes of 16-bit mono (little-endian).
        rate: sample rate in Hz.

    Raises:
        BadInput: the rate, the shape or the type of the samples cannot be used.
    """
    if not MIN_RATE <= rate <= MAX_RATE:
        raise BadInput(f"A sample rate of {rate} Hz is not possible: give one from {MIN_RATE} to {MAX_RATE}.")
    if isinstance(samples, (bytes, bytearray, memoryview)):
        data = bytes(samples)
        if len(data) % 2:
            raise BadInput(f"{len(data)} bytes are no 16-bit samples: give an even number of bytes.")
        samples = np.frombuffer(data, "<i2")
    samples = np.asarray(samples)
    if samples.dtype != np.int16 and samples.dtype.kind != "f":
        raise BadInput(f"Samples of type {samples.dtype} cannot be used: give int16, or floats in [-1, 1].")
    values = samples.astype(np.float32) / (32768 if samples.dtype == np.int16 else 1)
    if values.ndim == 2 and min(values.shape) <= 2:
        # The shorter side is that of the channels; two samples of two channels are read as [n, 2].
        values = values.mean(1 if values.shape[1] <= 2 else 0)
    if values.ndim != 1:
        raise BadInput(f"Samples of shape {samples.shape} are neither mono nor stereo: give [n], [n, 2] or [2, n].")
    return np.nan_to_num(values, posinf=1.0, neginf=-1.0).clip(-1.0, 1.0)


class StreamResampler:
    """Converts a stream of mono samples to one rate; the pieces may change their rate on the way."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._source_rate = rate
        self._resampler: av.AudioResampler | None = None

    def push(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """Return the converted samples ``[m]`` that are ready after samples ``[n]`` float32 of a rate in Hz."""
        before = np.zeros(0, np.float32)
        if rate != self._source_rate:
            before = self.finish()
            self._source_rate = rate
        if rate == self.rate or not len(samples):
            return np.concatenate([before, samples])
        if self._resampler is None:
            self._resampler = av.AudioResampler(format="fltp", layout="mono", rate=self.rate)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
        frame.sample_rate = rate
        return np.concatenate([before, *(part.to_ndarray()[0] for part in self._resampler.resample(frame))])

    def finish(self) -> np.ndarray:
        """Return the last converted samples; the next push begins a new stream."""
        if self._resampler is None:
            return np.zeros(0, np.float32)
        parts = [part.to_ndarray()[0] for part in self._resampler.resample(None)]
        self._resampler = None
        return np.concatenate([np.zeros(0, np.float32), *parts])


class SampleQueue:
    """Samples that wait, first in, first out.

    One thread may add samples while another one takes them.
    """

    def __init__(self) -> None:
        self._pieces: deque[np.ndarray] = deque()
        self._added = self._taken = 0

    def __len__(self) -> int:
        return self._added - self._taken

    def add(self, samples: np.ndarray) -> None:
        """Add samples ``[n]`` at the end."""
        if len(samples):
            self._pieces.append(samples)
            self._added += len(samples)

    def take(self, count: int) -> np.ndarray:
        """Remove and return the first ``count`` samples, or all if there are fewer."""
        parts, missing = [np.zeros(0, np.float32)], min(count, len(self))
        while missing:
            piece = self._pieces.popleft()
            if len(piece) > missing:
                self._pieces.appendleft(piece[missing:])
                piece = piece[:missing]
            parts.append(piece)
            missing -= len(piece)
            self._taken += len(piece)
        return np.concatenate(parts)
