"""Which speech leaves with which frame: what a voice agent asks of a face beyond pictures and sound.

    push, finish, interrupt ─► LiveAvatar ─► frames(): picture, 40 ms of sound, and how much of it is speech

An agent wants to know when its speech has begun, how much of it was played when somebody interrupted, and when it is
over. ``SpeechPlayback`` counts: ``pushed`` samples of speech have arrived, ``played`` of them have left with a frame.
The plug-ins for Pipecat and LiveKit are written with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np

from flowportrait.live.avatar import LiveAvatar

_ROOM_SECONDS = 0.05
"""Seconds between attempts to push when too much speech waits."""
_MAX_WAITING_SECONDS = 20.0
"""Seconds of speech that wait at most, so that a long answer of a fast voice is pushed while it is spoken."""
_THREAD_SECONDS = 10.0
"""Seconds after which nobody waits for the thread of a closed avatar any longer."""


@dataclass(frozen=True)
class PlayedFrame:
    """One frame of an avatar.

    Attributes:
        picture: ``[size, size, 3]`` uint8 RGB.
        sound: the 40 ms of sound that belong to it, ``[1, rate / 25]`` float32; silence without speech.
        spoken: number of samples of speech in it, from 0 to ``rate / 25``.
        interrupted: whether its sound is the end of speech that was interrupted since.
    """

    picture: np.ndarray
    sound: np.ndarray
    spoken: int
    interrupted: bool

    @property
    def has_speech(self) -> bool:
        """Whether the frame has speech that was not interrupted."""
        return self.spoken > 0 and not self.interrupted

    def pcm16(self) -> bytes:
        """Return the sound as 16-bit mono, little-endian."""
        return (self.sound[0].clip(-1, 1) * 32767).round().astype("<i2").tobytes()


class SpeechPlayback:
    """A live avatar with a count of the speech that was pushed and played, in samples at ``rate``.

    All methods belong in the thread of the event loop.
    """

    def __init__(self, avatar: LiveAvatar) -> None:
        self.avatar, self.rate = avatar, avatar.rate
        self.pushed = self.played = 0
        """Samples of speech that were pushed and not dropped, and those that have left, since the avatar was made."""
        self.interruptions = 0
        self._interrupted_until = 0
        self._taken: deque[int] = deque([0] * avatar._queue.delay)

    @property
    def queued_seconds(self) -> float:
        """Seconds of speech that wait."""
        return self.avatar._session.queued_seconds

    @property
    def is_over(self) -> bool:
        """Whether all speech that was pushed has left."""
        return self.played >= self.pushed

    async def push(self, samples: np.ndarray | bytes, rate: int) -> bool:
        """Add speech, when there is room for it.

        Args:
            samples: as for ``LiveAvatar.push``.
            rate: sample rate in Hz.

        Returns:
            Whether it was added: speech that waits for room is dropped by an interruption.

        Raises:
            BadInput: the samples cannot be used, or the avatar is closed.
        """
        interruptions = self.interruptions
        while self.queued_seconds > _MAX_WAITING_SECONDS:
            await asyncio.sleep(_ROOM_SECONDS)
            if self.interruptions != interruptions:
                return False
        before = self._queued
        self.avatar.push(samples, rate)
        self.pushed += self._queued - before
        return True

    def finish(self) -> None:
        """End the utterance: what was pushed is spoken to its end."""
        before = self._queued
        self.avatar.finish()
        self.pushed += self._queued - before

    def interrupt(self) -> None:
        """Stop speaking and drop the speech that waits; what is on its way leaves as ``interrupted``."""
        self.interruptions += 1
        before = self._queued
        self.avatar.interrupt()
        self.pushed -= before - self._queued
        self._interrupted_until = self.pushed

    async def frames(self) -> AsyncIterator[PlayedFrame]:
        """Yield a frame 25 times a second, until the avatar is closed."""
        async for picture, sound in self.avatar.frames():
            # A pair leaves some ticks after its own: the count of its own tick is the oldest of those waiting.
            self._taken.append(max(self.pushed - self._queued, self._taken[-1] if self._taken else 0))
            taken = min(self._taken.popleft(), self.pushed)
            spoken = max(0, min(taken - self.played, sound.shape[1]))
            self.played = max(self.played, taken)
            # The fading end of an interrupted sound counts as no speech.
            fading = spoken == 0 and bool(sound.any())
            interrupted = fading or (spoken > 0 and self.played <= self._interrupted_until)
            yield PlayedFrame(picture, sound, spoken, interrupted)

    @property
    def _queued(self) -> int:
        return round(self.queued_seconds * self.rate)


async def close_avatar(avatar: LiveAvatar) -> None:
    """Close an avatar and wait until its thread has ended: one that still draws while Python exits aborts the process.

    Args:
        avatar: the avatar, whose ``frames`` end.
    """
    await asyncio.to_thread(avatar.close)
    if avatar._thread is not None:
        await asyncio.to_thread(avatar._thread.join, _THREAD_SECONDS)
