"""An avatar for LiveKit Agents that is drawn on this machine (extra ``livekit``).

    AgentSession ── QueueAudioOutput ──► AvatarRunner ── push_audio ──► FlowPortraitVideoGenerator
    room: tracks of video and audio ◄── AVSynchronizer ◄── rtc.VideoFrame, rtc.AudioFrame, AudioSegmentEnd ──┘

``FlowPortraitAvatarSession`` connects these for an agent; its participant publishes the video itself, so no second
participant joins the room. ``FlowPortraitVideoGenerator`` is the part for an ``AvatarRunner`` of one's own, for example
in another process, behind a ``DataStreamAudioReceiver``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import cv2
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.extras import missing_package_message
from flowportrait.live.avatar import LiveAvatar
from flowportrait.live.playback import AvatarSource, SpeechPlayback, channel_samples
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.inputs import ImageInput

try:
    from livekit import rtc
    from livekit.agents import AgentSession
    from livekit.agents.voice.avatar import (
        AudioSegmentEnd,
        AvatarOptions,
        AvatarRunner,
        AvatarSession,
        QueueAudioOutput,
        VideoGenerator,
    )
except ModuleNotFoundError as error:
    raise BadInput(missing_package_message("livekit", "livekit")) from error

_CLEAR_SECONDS = 0.5
"""Seconds after which an interruption waits no longer for the fading sound, in case nobody takes frames."""


class FlowPortraitVideoGenerator(VideoGenerator):
    """LiveKit's interface of an avatar for a ``LiveAvatar``: speech in, frames of video and audio out."""

    def __init__(self, avatar: LiveAvatar) -> None:
        self.avatar = avatar
        self._playback = SpeechPlayback(avatar)
        self._segment_ends: list[int] = []
        self._has_segment = False
        self._sent = 0  # samples of speech that have left

    @property
    def options(self) -> AvatarOptions:
        """What an ``AvatarRunner`` for this generator is made with."""
        return AvatarOptions(
            video_width=self.avatar.size,
            video_height=self.avatar.size,
            video_fps=FPS,
            audio_sample_rate=self.avatar.rate,
            audio_channels=1,
        )

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        """Take speech, or the end of a segment of speech.

        Raises:
            BadInput: the audio cannot be used.
        """
        if isinstance(frame, AudioSegmentEnd):
            # The end of a segment that was interrupted says nothing about the next one.
            if self._has_segment:
                self._playback.finish()
                self._segment_ends.append(self._playback.pushed)
            self._has_segment = False
        elif await self._playback.push(channel_samples(frame.data, frame.num_channels), frame.sample_rate):
            self._has_segment = True

    def hear(self, frame: rtc.AudioFrame) -> None:
        """Take the voice of the user, to which the face listens.

        Raises:
            BadInput: the audio cannot be used.
        """
        self.avatar.hear(channel_samples(frame.data, frame.num_channels), frame.sample_rate)

    async def clear_buffer(self) -> None:
        """Stop speaking; returns when the fading sound has left, so that the position of playback is right."""
        self._playback.interrupt()
        self._segment_ends.clear()
        self._has_segment = False
        until = self._playback.pushed
        waited = 0.0
        while self._sent < until and waited < _CLEAR_SECONDS:
            await asyncio.sleep(1 / FPS / 2)
            waited += 1 / FPS / 2

    def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        """Yield a picture 25 times a second, the audio that belongs to it where there is speech, and ends of segments.

        There is no audio without speech, because an ``AvatarRunner`` counts all audio as played speech.
        """
        return self._frames()

    async def _frames(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        async for played in self._playback.frames():
            yield _video_frame(played.picture)
            if played.spoken:
                # Cut to the speech, so that the position of playback ends at the length of what was pushed.
                audio = played.pcm16()[: 2 * played.spoken]
                yield rtc.AudioFrame(audio, self.avatar.rate, 1, played.spoken)
            self._sent = self._playback.played
            while self._segment_ends and self._segment_ends[0] <= self._sent:
                self._segment_ends.pop(0)
                yield AudioSegmentEnd()


class FlowPortraitAvatarSession(AvatarSession[str]):
    """Gives an agent of LiveKit a face.

    ::

        session = AgentSession(stt=..., llm=..., tts=...)
        avatar = FlowPortraitAvatarSession(image="me.jpg")
        await avatar.start(session, room=ctx.room)
        await session.start(agent, room=ctx.room)
    """

    def __init__(
        self,
        *,
        image: ImageInput | Portrait | None = None,
        avatar: LiveAvatar | None = None,
        checkpoint: str | Path | AnimatePipeline = "rl",
        size: int = 384,
        seed: int = 0,
        intensity: float = 1.0,
    ) -> None:
        """Prepare the session; the avatar is made by ``start``.

        Args:
            image: photo, painting or drawing; what ``LiveAvatar`` takes.
            avatar: an avatar that is ready, in place of ``image``; it is not closed at the end.
            checkpoint: the generator, as for ``LiveAvatar``.
            size: side of the pictures in pixels.
            seed: random seed of the motion.
            intensity: how expressive the motion is, from 0.6 to 1.6.

        Raises:
            BadInput: there is no image, or both an image and an avatar.
        """
        super().__init__()
        self._avatar_source = AvatarSource(
            "FlowPortraitAvatarSession", image, avatar, checkpoint=checkpoint, size=size, seed=seed, intensity=intensity
        )
        self._runner: AvatarRunner | None = None

    @property
    def avatar_identity(self) -> str:
        """Identity of the participant that publishes the video: the agent itself."""
        return self._room.local_participant.identity if self._room is not None else ""

    @property
    def provider(self) -> str:
        """Name of the provider in metrics."""
        return "flowportrait"

    @property
    def avatar(self) -> LiveAvatar | None:
        """The avatar; None before ``start``."""
        return self._avatar_source.avatar

    async def start(self, agent_session: AgentSession, room: rtc.Room) -> None:
        """Make the avatar and send the speech of a session through it; call it before the session starts.

        Args:
            agent_session: the session that gets a face.
            room: where video and audio are published, once it is connected.
        """
        await super().start(agent_session, room)
        avatar = await self._avatar_source.opened()
        if avatar is None:
            raise BadInput("This FlowPortraitAvatarSession has ended: make a new one.")
        generator = FlowPortraitVideoGenerator(avatar)
        output = QueueAudioOutput(sample_rate=avatar.rate, wait_playback_start=True)
        self._runner = AvatarRunner(room, audio_recv=output, video_gen=generator, options=generator.options)
        await self._runner.start()
        agent_session.output.audio = output

    async def aclose(self) -> None:
        """Stop publishing and release the avatar."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.aclose()
        await super().aclose()
        await self._avatar_source.close()


def _video_frame(picture: np.ndarray) -> rtc.VideoFrame:
    """Return a picture ``[H, W, 3]`` as I420 if its sides are even, which saves LiveKit a conversion."""
    height, width = picture.shape[:2]
    if height % 2 or width % 2:
        return rtc.VideoFrame(width, height, rtc.VideoBufferType.RGB24, picture.tobytes())
    data = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420).tobytes()
    return rtc.VideoFrame(width, height, rtc.VideoBufferType.I420, data)
