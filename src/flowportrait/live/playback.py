"""Which speech leaves with which frame: what a voice agent asks of a face beyond pictures and sound.

    push, finish, interrupt ─► LiveAvatar ─► frames(): picture, 40 ms of sound, and how much of it is speech

An agent wants to know when its speech has begun, how much of it was played when somebody interrupted, and when it is
over. ``SpeechPlayback`` counts: ``pushed`` samples of speech have arrived, ``played`` of them have left with a frame.
The plug-ins for Pipecat and LiveKit are written with it, and with ``AvatarSource``: an avatar that is made when the
agent starts, or that is there already.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.live.avatar import LiveAvatar
from flowportrait.media.portrait import Portrait
from flowportrait.pipelines.inputs import ImageInput

_ROOM_SECONDS = 0.05
"""Seconds between attempts to push when too much speech waits."""
_MAX_WAITING_SECONDS = 20.0
"""Seconds of speech that wait at most, so that a long answer of a fast voice is pushed while it is spoken."""


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
        self.played = 0
        """Samples of speech that have left."""
        self.interruptions = 0
        self._interrupted_until = 0
        self._played_before = avatar.played_samples

    @property
    def pushed(self) -> int:
        """Samples of speech that were pushed and not dropped: those that have left, and those that wait."""
        return self.avatar.played_samples - self._played_before + self.avatar.waiting_samples

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
        while self.avatar.queued_seconds > _MAX_WAITING_SECONDS:
            await asyncio.sleep(_ROOM_SECONDS)
            if self.interruptions != interruptions:
                return False
        self.avatar.push(samples, rate)
        return True

    def finish(self) -> None:
        """End the utterance: what was pushed is spoken to its end."""
        self.avatar.finish()

    def interrupt(self) -> None:
        """Stop speaking and drop the speech that waits; what is on its way leaves as ``interrupted``."""
        self.interruptions += 1
        self.avatar.interrupt()
        self._interrupted_until = self.pushed

    async def frames(self) -> AsyncIterator[PlayedFrame]:
        """Yield a frame 25 times a second, until the avatar is closed."""
        async for picture, sound in self.avatar.frames():
            spoken = self.avatar.played_samples - self._played_before - self.played
            self.played += spoken
            # The fading end of an interrupted sound counts as no speech.
            fading = spoken == 0 and bool(sound.any())
            interrupted = fading or (spoken > 0 and self.played <= self._interrupted_until)
            yield PlayedFrame(picture, sound, spoken, interrupted)


class AvatarSource:
    """The avatar of a plug-in: made from an image when it is opened, or one that somebody else made."""

    def __init__(
        self, owner: str, image: ImageInput | Portrait | None, avatar: LiveAvatar | None, **settings: Any
    ) -> None:
        """Check that there is one of the two.

        Args:
            owner: name of the plug-in's class, for the message.
            image: what ``LiveAvatar`` takes.
            avatar: an avatar that is ready; ``close`` leaves it open.
            **settings: keyword arguments of ``LiveAvatar``.

        Raises:
            BadInput: there is no image, or both an image and an avatar.
        """
        if (image is None) == (avatar is None):
            raise BadInput(f"{owner} needs image=... or avatar=..., one of the two.")
        self.avatar = avatar
        self._make = None if image is None else partial(LiveAvatar, image, **settings)

    async def opened(self, **settings: Any) -> LiveAvatar | None:
        """Return the avatar, made in a thread because that takes seconds; None if the only one was closed."""
        if self.avatar is None and self._make is not None:
            self.avatar = await asyncio.to_thread(self._make, **settings)
        return self.avatar

    async def close(self) -> None:
        """Close the avatar if it was made here."""
        if self._make is None or self.avatar is None:
            return
        avatar, self.avatar = self.avatar, None
        await avatar.aclose()


def channel_samples(pcm: bytes | memoryview, channels: int) -> np.ndarray:
    """Return 16-bit sound with interleaved channels as samples ``[n]`` or ``[n, channels]`` int16."""
    samples = np.frombuffer(pcm, "<i2")
    return samples if channels == 1 else samples.reshape(-1, channels)
