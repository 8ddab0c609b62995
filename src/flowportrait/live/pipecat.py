"""A video service for Pipecat: the agent's speech goes in, a face that speaks it comes out (extra ``pipecat``).

    TTS ── TTSAudioRawFrame ──► FlowPortraitVideoService ── OutputImageRawFrame + TTSAudioRawFrame ──► transport
    microphone ── InputAudioRawFrame ──► (the face listens)        25 times a second, together

The service replaces the audio of the text-to-speech service by the same audio, 40 ms with every picture, so nothing
is heard twice. Frames that follow audio (``TTSStoppedFrame``, ``TTSTextFrame``, ``EndFrame``...) wait until that audio
has left, so an agent that is interrupted remembers what it said, and not what it would have said.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowportrait.errors import BadInput
from flowportrait.extras import missing_package_message
from flowportrait.live.avatar import LiveAvatar
from flowportrait.live.playback import AvatarSource, PlayedFrame, SpeechPlayback, channel_samples
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.inputs import ImageInput

try:
    from pipecat.frames.frames import (
        CancelFrame,
        EndFrame,
        Frame,
        InputAudioRawFrame,
        InterruptionFrame,
        OutputAudioRawFrame,
        OutputImageRawFrame,
        ServiceUpdateSettingsFrame,
        StartFrame,
        SystemFrame,
        TTSAudioRawFrame,
        TTSStartedFrame,
        TTSStoppedFrame,
    )
    from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
    from pipecat.services.ai_service import AIService
    from pipecat.services.settings import NOT_GIVEN, ServiceSettings
except ModuleNotFoundError as error:
    raise BadInput(missing_package_message("pipecat", "pipecat")) from error

_DRAIN_SECONDS = 0.02
"""Seconds between looks whether the last speech has left, at the end of a pipeline."""


@dataclass
class FlowPortraitVideoSettings(ServiceSettings):
    """Settings of the service that can be changed while it runs.

    Attributes:
        listen: whether the face listens to the user: looks at the viewer, nods and blinks at pauses.
    """

    listen: Any = field(default_factory=lambda: NOT_GIVEN)


class FlowPortraitVideoService(AIService):
    """Pipecat service that speaks with a face drawn on this machine.

    ::

        video = FlowPortraitVideoService(image="me.jpg", size=384)
        Pipeline([transport.input(), stt, user, llm, tts, video, transport.output(), assistant])

    The output transport needs ``video_out_enabled=True``, ``video_out_is_live=True``, ``video_out_framerate=25`` and
    ``video_out_width`` and ``video_out_height`` as ``size``.
    """

    Settings = FlowPortraitVideoSettings
    _settings: FlowPortraitVideoSettings

    def __init__(
        self,
        *,
        image: ImageInput | Portrait | None = None,
        avatar: LiveAvatar | None = None,
        checkpoint: str | Path | AnimatePipeline = "rl",
        size: int = 384,
        seed: int = 0,
        intensity: float = 1.0,
        settings: FlowPortraitVideoSettings | None = None,
        **kwargs: Any,
    ) -> None:
        """Prepare the service; the avatar is made when the pipeline sets it up.

        Args:
            image: photo, painting or drawing; what ``LiveAvatar`` takes.
            avatar: an avatar that is ready, in place of ``image``; it is not closed at the end.
            checkpoint: the generator, as for ``LiveAvatar``.
            size: side of the pictures in pixels.
            seed: random seed of the motion.
            intensity: how expressive the motion is, from 0.6 to 1.6.
            settings: what can be changed while the service runs.
            **kwargs: arguments of Pipecat's ``AIService``, such as ``name``.

        Raises:
            BadInput: there is no image, or both an image and an avatar.
        """
        self._avatar_source = AvatarSource(
            "FlowPortraitVideoService", image, avatar, checkpoint=checkpoint, size=size, seed=seed, intensity=intensity
        )
        current = self.Settings(model=checkpoint if isinstance(checkpoint, str) else None, listen=True)
        if settings is not None:
            current.apply_update(settings)
        super().__init__(settings=current, **kwargs)
        self._playback: SpeechPlayback | None = None
        self._waiting: deque[tuple[int, Frame]] = deque()
        self._sent = 0  # samples of speech that were pushed on, as in ``SpeechPlayback.played``
        self._stream_task: asyncio.Task[None] | None = None
        self._context_id: str | None = None
        self._measures_ttfb = False

    @property
    def avatar(self) -> LiveAvatar | None:
        """The avatar; None before the pipeline has set the service up."""
        return self._avatar_source.avatar

    def can_generate_metrics(self) -> bool:
        """Return True: the time from the first audio of an utterance to its first picture is measured."""
        return True

    # --- Lifecycle ---

    async def setup(self, setup: FrameProcessorSetup) -> None:
        """Make the avatar, in a thread, because it takes seconds."""
        await super().setup(setup)
        rate = setup.audio_out_sample_rate
        avatar = await self._avatar_source.opened(rate=rate if rate % FPS == 0 else 48_000)
        if avatar is not None:
            self._playback = SpeechPlayback(avatar)

    async def stop(self, frame: EndFrame) -> None:
        """Let the last speech leave, and stop."""
        await super().stop(frame)
        if self._playback is not None:
            self._playback.finish()
            while self._stream_task and not self._stream_task.done() and self._sent < self._playback.pushed:
                await asyncio.sleep(_DRAIN_SECONDS)
        await self._end()

    async def cancel(self, frame: CancelFrame) -> None:
        """Stop at once."""
        await super().cancel(frame)
        self._waiting.clear()
        await self._end()

    async def cleanup(self) -> None:
        """Release the avatar."""
        await super().cleanup()
        await self._end()

    async def _end(self) -> None:
        task, self._stream_task = self._stream_task, None
        if task is not None:
            await self.cancel_task(task)
        await self._push_waiting(everything=True)
        self._playback = None
        await self._avatar_source.close()

    # --- Frames ---

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Take speech and the user's voice; pass other frames on, behind the audio that came before them."""
        await super().process_frame(frame, direction)
        playback = self._playback
        if playback is None or direction == FrameDirection.UPSTREAM:
            await self.push_frame(frame, direction)
        elif isinstance(frame, StartFrame):
            await self.push_frame(frame, direction)
            if self._stream_task is None:
                self._stream_task = self.create_task(self._stream(playback))
        elif isinstance(frame, TTSAudioRawFrame):
            await self._speak(playback, frame)
        elif isinstance(frame, InterruptionFrame):
            await self._interrupt(playback)
            await self.push_frame(frame, direction)
        elif isinstance(frame, InputAudioRawFrame):
            if self._settings.listen:
                playback.avatar.hear(channel_samples(frame.audio, frame.num_channels), frame.sample_rate)
            await self.push_frame(frame, direction)
        elif isinstance(frame, SystemFrame):
            await self.push_frame(frame, direction)
        elif isinstance(frame, ServiceUpdateSettingsFrame) and frame.service is self:
            await self._update_settings(frame.delta or self.Settings.from_mapping(frame.settings))
        else:
            if isinstance(frame, TTSStoppedFrame):
                playback.finish()
            self._waiting.append((playback.pushed, frame))
            await self._push_waiting()

    async def _speak(self, playback: SpeechPlayback, frame: TTSAudioRawFrame) -> None:
        if playback.is_over and not self._measures_ttfb:
            self._measures_ttfb = True
            await self.start_ttfb_metrics()
        try:
            await playback.push(channel_samples(frame.audio, frame.num_channels), frame.sample_rate)
        except BadInput as error:
            await self.push_error(str(error), exception=error)

    async def _interrupt(self, playback: SpeechPlayback) -> None:
        playback.interrupt()
        self._measures_ttfb = False
        await self.cancel_ttfb_metrics()
        dropped, self._waiting = self._waiting, deque()
        for _, frame in dropped:
            if not frame.interruptible:
                await self._push_in_order(frame)

    async def _stream(self, playback: SpeechPlayback) -> None:
        try:
            async for played in playback.frames():
                await self._push_played(playback, played)
        except Exception as error:
            await self.push_error(f"The face stopped: {error}", exception=error, force_treat_as_permanent=True)

    async def _push_played(self, playback: SpeechPlayback, played: PlayedFrame) -> None:
        """Push a picture, its sound if there is any, and the frames that waited for this sound.

        Silence is not pushed: a transport that fills it in by itself would fall behind the pictures.
        """
        height, width = played.picture.shape[:2]
        if played.has_speech and self._measures_ttfb:
            self._measures_ttfb = False
            await self.stop_ttfb_metrics()
        await self.push_frame(OutputImageRawFrame(image=played.picture.tobytes(), size=(width, height), format="RGB"))
        if played.has_speech:
            await self.push_frame(TTSAudioRawFrame(played.pcm16(), playback.rate, 1, context_id=self._context_id))
        elif played.interrupted:
            # As plain audio: an utterance that fades away must not count as the bot speaking again.
            await self.push_frame(OutputAudioRawFrame(played.pcm16(), playback.rate, 1))
        self._sent = playback.played
        await self._push_waiting()

    async def _push_waiting(self, everything: bool = False) -> None:
        while self._waiting and (everything or self._waiting[0][0] <= self._sent):
            await self._push_in_order(self._waiting.popleft()[1])

    async def _push_in_order(self, frame: Frame) -> None:
        if isinstance(frame, TTSStartedFrame):
            self._context_id = frame.context_id
        await self.push_frame(frame)
