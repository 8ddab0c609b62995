"""A test source of 25 frames a second: a white flash and a click once a second, black and silence otherwise."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import numpy as np

FPS = 25
CLICK_SECONDS = 0.01


class ClickAndFlash:
    """Frames with a flash and a click in every ``period``-th one, beginning with number ``first``."""

    def __init__(self, size: int = 256, rate: int = 48_000, period: int = FPS, first: int = 12) -> None:
        self.size, self.rate, self.period, self.first = size, rate, period, first
        self._black = np.zeros((size, size, 3), np.uint8)
        self._white = np.full((size, size, 3), 255, np.uint8)
        self._silence = np.zeros((1, rate // FPS), np.float32)
        times = np.arange(rate // FPS) / rate
        self._click = (0.8 * np.sin(2 * np.pi * 1000 * times) * (times < CLICK_SECONDS)).astype(np.float32)[None]

    def is_event(self, index: int) -> bool:
        """Whether the frame of this number has the flash and the click."""
        return index >= self.first and (index - self.first) % self.period == 0

    def frame(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture ``[size, size, 3]`` uint8 RGB and sound ``[1, rate / 25]`` float32."""
        return (self._white, self._click) if self.is_event(index) else (self._black, self._silence)

    async def play(self, send: Callable[[int, np.ndarray, np.ndarray], None], frames: int | None = None) -> None:
        """Call ``send`` with the number, the picture and the sound of every frame when it is due, without drift."""
        begin, index = time.monotonic(), 0
        while frames is None or index < frames:
            await asyncio.sleep(max(0.0, begin + index / FPS - time.monotonic()))
            send(index, *self.frame(index))
            index += 1
