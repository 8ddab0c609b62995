"""Memory of live sessions over hours of an injected clock: no process waits, and nothing may grow.

    session      LiveSession alone: speech every ten seconds, with the generator that ships
    connection   LiveAvatar + LiveConnection: a clock that jumps by one frame, control messages, pictures as they come
    leaking      the session again, which keeps 64 bytes of every frame: its growth must be found

The clock is a number that moves by 1/25 s with every frame, so hours pass in minutes. Pictures are drawn by their
thread as fast as the processor allows, which is a part of all frames.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.live_analysis import slope_per_hour
from benchmarks.live_browser import resident_memory
from flowportrait.media.video import FPS

if TYPE_CHECKING:
    from flowportrait.live import LivePortrait

UTTERANCE_EVERY = 10.0
"""Seconds of the clock from the beginning of one utterance to the next."""
SAMPLE_EVERY = 30.0
"""Seconds of the clock between two readings of the memory."""
GENERATION_SECONDS = 0.003
"""Seconds for which a frame of speech waits, so that its motion is generated meanwhile."""
AHEAD_FRAMES = 5
"""More frames than an avatar holds back."""
LEAK_BYTES = 64
"""Bytes of every frame that the leaking session keeps: 5.8 MB an hour."""


@dataclass
class MemoryCurve:
    """Memory over simulated time.

    Attributes:
        seconds: time on the injected clock.
        megabytes: resident memory of this process.
        objects: Python objects that the garbage collector tracks, after a collection.
        drawn: different pictures that were sent.
    """

    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    drawn: int = 0

    def read(self, now: float) -> None:
        """Add one reading."""
        gc.collect()
        self.seconds.append(now)
        self.megabytes.append(resident_memory(os.getpid()))
        self.objects.append(len(gc.get_objects()))

    @property
    def slope(self) -> float:
        """Growth in MB per hour of the clock, after its first quarter."""
        return slope_per_hour(self.seconds, self.megabytes)

    @property
    def new_objects(self) -> float:
        """Growth in objects per hour of the clock, after its first quarter."""
        return slope_per_hour(self.seconds, self.objects)


def simulate_session(
    open_source: Callable[[int], Any], speech: np.ndarray, hours: float, leak_bytes: int = 0
) -> MemoryCurve:
    """Run a ``LiveSession`` for hours of an injected clock.

    Args:
        open_source: returns what generates the motion of one utterance.
        speech: ``[n]`` int16 at 16 kHz, spoken every ``UTTERANCE_EVERY`` seconds.
        hours: time on the clock.
        leak_bytes: keep so many bytes of every frame.
    """
    from flowportrait.live.session import LiveSession

    now, curve, kept = 0.0, MemoryCurve(), list[bytes]()
    session = LiveSession(open_source, clock=lambda: now)
    for index in range(round(3600 * hours * FPS)):
        now = index / FPS
        if index % round(UTTERANCE_EVERY * FPS) == FPS:
            session.push(speech, 16_000)
            session.finish()
        if index % round(3 * UTTERANCE_EVERY * FPS) == 3 * FPS:
            session.interrupt()
        session.hear(np.zeros(640, np.int16), 16_000)
        while session.generate():
            pass
        session.tick()
        if leak_bytes:
            kept.append(os.urandom(leak_bytes))
        if index % round(SAMPLE_EVERY * FPS) == 0:
            curve.read(now)
    return curve


class _SimulatedClient:
    """A client that reads everything; every frame that it takes moves the clock by one, and it acts at some of them."""

    def __init__(self, speech: np.ndarray, hours: float) -> None:
        self.frames, self.messages = 0, 0
        self.curve = MemoryCurve()
        self.connection: Any = None
        self._speech = bytes([1]) + np.ascontiguousarray(speech, "<i2").tobytes()
        self._last = round(3600 * hours * FPS)
        self._picture: np.ndarray | None = None

    @property
    def now(self) -> float:
        """Time on the injected clock; after the first frame it is some ahead, so that the avatar never sleeps."""
        return (self.frames + (AHEAD_FRAMES if self.frames else 0)) / FPS

    def send_frame(self, index: int, picture: np.ndarray, sound: np.ndarray) -> None:
        self.frames += 1
        self.curve.drawn += picture is not self._picture
        self._picture = picture
        period = round(UTTERANCE_EVERY * FPS)
        if self.frames % period == FPS:
            self.connection.on_binary(self._speech)
            self.connection.on_text('{"type": "finish"}')
        elif self.frames % (3 * period) == 3 * FPS:
            self.connection.on_text('{"type": "interrupt"}')
        elif self.frames % FPS == 0:
            self.connection.on_text('{"type": "ping", "id": 1}')
            self.connection.on_text('{"type": "no such type"}')
            self.connection.on_binary(bytes([2]) + bytes(640))
        if self.connection.state == "speaking":
            # Speech waits for its motion: the thread that generates gets the time.
            time.sleep(GENERATION_SECONDS)
        if self.frames % round(SAMPLE_EVERY * FPS) == 0:
            self.curve.read(self.now)
        if self.frames >= self._last:
            self.connection.close("The measurement has ended.")

    def send_text(self, message: str) -> None:
        self.messages += 1


def simulate_connection(portrait: LivePortrait, speech: np.ndarray, hours: float) -> MemoryCurve:
    """Run a ``LiveAvatar`` and its ``LiveConnection`` for hours of an injected clock.

    Args:
        portrait: the face.
        speech: ``[n]`` int16 at 24 kHz, spoken every ``UTTERANCE_EVERY`` seconds.
        hours: time on the clock.
    """
    from flowportrait.live.avatar import LiveAvatar
    from flowportrait.live.connection import LiveConnection
    from flowportrait.live.limits import LiveLimits
    from flowportrait.live.metrics import LiveMetrics
    from flowportrait.live.protocol import StartMessage

    async def run() -> MemoryCurve:
        client = _SimulatedClient(speech, hours)
        avatar = LiveAvatar(portrait, clock=lambda: client.now)
        client.connection = LiveConnection(
            "memory", avatar, StartMessage.model_validate({}), size=portrait.size, limits=LiveLimits(),
            metrics=LiveMetrics(), clock=lambda: client.now,
        )  # fmt: skip
        await client.connection.run(client, "none")
        return client.curve

    return asyncio.run(run())
