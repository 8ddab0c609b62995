"""Claims about the avatar for LiveKit Agents, with the real runner, audio output, session and native sources.

A room needs a LiveKit server. ``LocalRoom`` stands in for it: what is published is read back from the native tracks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("livekit.agents")

import itertools

from livekit import rtc
from livekit.agents import Agent, AgentSession
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarRunner, QueueAudioOutput
from livekit.agents.voice.io import PlaybackFinishedEvent

from flowportrait.errors import BadInput
from flowportrait.live.avatar import LiveAvatar
from flowportrait.live.livekit import FlowPortraitAvatarSession, FlowPortraitVideoGenerator, _video_frame
from flowportrait.media.audio import read_audio
from flowportrait.media.portrait import Portrait
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.samples import SPEECH

PCM = (read_audio(SPEECH)[:48_000] * 32767).astype("<i2")
RATE, SIZE = 24_000, 128


@pytest.fixture
def avatar(pipeline: AnimatePipeline, portrait: Portrait) -> Iterator[LiveAvatar]:
    avatar = LiveAvatar(portrait, checkpoint=pipeline, rate=RATE)
    yield avatar
    avatar.close()


def voice(pcm: np.ndarray, milliseconds: int = 20) -> list[rtc.AudioFrame]:
    step = 16 * milliseconds
    parts = [pcm[at : at + step] for at in range(0, len(pcm), step)]
    return [rtc.AudioFrame(part.tobytes(), 16_000, 1, len(part)) for part in parts]


class LocalRoom(rtc.EventEmitter):
    """A room without a server: it is connected, and hands what is published to native readers of the tracks."""

    def __init__(self) -> None:
        super().__init__()
        self.local_participant = self
        self.identity, self.name, self.remote_participants = "agent", "room", {}
        self.video: list[rtc.VideoFrame] = []
        self.audio: list[np.ndarray] = []
        self._readers: list[asyncio.Task] = []

    def isconnected(self) -> bool:
        return True

    @property
    def track_publications(self) -> dict:
        return {}

    async def publish_track(self, track: Any, options: Any) -> LocalRoom:
        if isinstance(track, rtc.LocalVideoTrack):
            self._readers.append(asyncio.create_task(self._read(rtc.VideoStream(track), self.video)))
        else:
            self._readers.append(asyncio.create_task(self._read(rtc.AudioStream(track, sample_rate=RATE), self.audio)))
        return self

    async def wait_for_subscription(self) -> None:
        pass

    async def _read(self, stream: Any, into: list) -> None:
        try:
            async for event in stream:
                frame = event.frame
                into.append(np.frombuffer(frame.data, "<i2").copy() if isinstance(frame, rtc.AudioFrame) else frame)
        finally:
            await stream.aclose()

    async def close(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)


def test_a_generator_yields_pictures_always_and_audio_where_there_is_speech(avatar: LiveAvatar) -> None:
    async def run() -> list[Any]:
        generator = FlowPortraitVideoGenerator(avatar)
        for frame in voice(PCM[:16_000]):
            await generator.push_audio(frame)
        await generator.push_audio(AudioSegmentEnd())
        frames: list[Any] = []
        async for frame in generator:
            frames.append(frame)
            if [type(one) for one in frames[-5:]] == [AudioSegmentEnd] + 4 * [rtc.VideoFrame] or len(frames) > 500:
                break
        return frames

    frames = asyncio.run(run())
    audio = [frame for frame in frames if isinstance(frame, rtc.AudioFrame)]
    assert sum(frame.samples_per_channel for frame in audio) == pytest.approx(RATE, abs=240), "one second, and no more"
    for before, frame in itertools.pairwise(frames):
        if isinstance(frame, rtc.AudioFrame):
            assert isinstance(before, rtc.VideoFrame)
    kinds = [type(frame) for frame in frames]
    assert kinds.count(AudioSegmentEnd) == 1
    last_audio = max(at for at, kind in enumerate(kinds) if kind is rtc.AudioFrame)
    assert kinds[last_audio + 1] is AudioSegmentEnd
    assert (frames[0].width, frames[0].height) == (SIZE, SIZE)


@pytest.mark.parametrize("size", [128, 127])
def test_a_picture_keeps_its_colours(portrait: Portrait, size: int) -> None:
    picture = np.ascontiguousarray(portrait.crop[:size, :size])
    frame = _video_frame(picture)
    if frame.type != rtc.VideoBufferType.RGB24:
        frame = frame.convert(rtc.VideoBufferType.RGB24)
    shown = np.frombuffer(frame.data, np.uint8).reshape(size, size, 3).astype(float)
    assert np.abs(shown - picture).mean() < 5
    assert np.abs(shown - picture[..., ::-1]).mean() > 10, "and red is not blue"


def test_the_end_of_an_interrupted_segment_does_not_end_the_next_one(avatar: LiveAvatar) -> None:
    async def run() -> list[type]:
        generator = FlowPortraitVideoGenerator(avatar)
        for frame in voice(PCM[:16_000]):
            await generator.push_audio(frame)
        kinds: list[type] = []
        frames = aiter(generator)
        async for frame in frames:
            kinds.append(type(frame))
            if kinds.count(rtc.AudioFrame) == 10:
                clearing = asyncio.create_task(generator.clear_buffer())
                break
        async for _ in frames:
            if clearing.done():
                break
        assert avatar.state != "speaking"
        kinds.clear()
        await generator.push_audio(AudioSegmentEnd())
        for part in voice(PCM[:8_000]):
            await generator.push_audio(part)
        await generator.push_audio(AudioSegmentEnd())
        async for frame in frames:
            kinds.append(type(frame))
            if kinds[-5:] == [AudioSegmentEnd] + 4 * [rtc.VideoFrame] or len(kinds) > 500:
                break
        return kinds

    kinds = asyncio.run(run())
    assert kinds.count(AudioSegmentEnd) == 1
    assert kinds.index(AudioSegmentEnd) > max(at for at, kind in enumerate(kinds) if kind is rtc.AudioFrame)


def test_a_runner_plays_a_segment_and_reports_its_length(avatar: LiveAvatar) -> None:
    async def run() -> tuple[LocalRoom, list[PlaybackFinishedEvent], list[str]]:
        room, generator = LocalRoom(), FlowPortraitVideoGenerator(avatar)
        output = QueueAudioOutput(sample_rate=RATE, wait_playback_start=True)
        finished: list[PlaybackFinishedEvent] = []
        order: list[str] = []
        output.on("playback_started", lambda _: order.append("started"))
        output.on("playback_finished", lambda event: (order.append("finished"), finished.append(event)))
        runner = AvatarRunner(room, audio_recv=output, video_gen=generator, options=generator.options)
        await runner.start()
        for frame in voice(PCM):
            await output.capture_frame(frame)
        output.flush()
        await asyncio.wait_for(output.wait_for_playout(), 20)
        await asyncio.sleep(0.3)
        await runner.aclose()
        await room.close()
        return room, finished, order

    room, finished, order = asyncio.run(run())
    assert order == ["started", "finished"]
    assert not finished[0].interrupted
    assert finished[0].playback_position == pytest.approx(3.0, abs=0.02)
    assert len(room.video) > 75, "pictures before, during and after speech"
    assert (room.video[0].width, room.video[0].height) == (SIZE, SIZE)
    heard = np.concatenate(room.audio).astype(float)
    assert np.abs(heard).max() > 0.5 * np.abs(PCM).max()


def test_an_agent_that_is_interrupted_knows_how_much_it_said(avatar: LiveAvatar) -> None:
    async def recording() -> AsyncIterator[rtc.AudioFrame]:
        for frame in voice(PCM):
            yield frame

    async def run() -> tuple[Any, list[PlaybackFinishedEvent], LocalRoom]:
        room, session = LocalRoom(), AgentSession()
        face = FlowPortraitAvatarSession(avatar=avatar)
        await face.start(session, room)
        finished: list[PlaybackFinishedEvent] = []
        session.output.audio.on("playback_finished", finished.append)
        await session.start(Agent(instructions=""))
        handle = session.say("a long sentence", audio=recording())
        while avatar.state != "speaking":
            await asyncio.sleep(0.02)
        await asyncio.sleep(1.0)
        handle.interrupt()
        await asyncio.wait_for(handle.wait_for_playout(), 10)
        heard = len(room.audio)
        await asyncio.sleep(0.6)
        later = np.concatenate(room.audio[heard + 20 :] or [np.zeros(1)])
        await session.aclose()
        await face.aclose()
        await room.close()
        return later, finished, room

    later, finished, room = asyncio.run(run())
    assert len(finished) == 1
    assert finished[0].interrupted
    assert 0.7 < finished[0].playback_position < 1.6
    assert np.abs(later).max() < 50, "silence after the interruption"
    assert len(room.video) > 40


def test_a_session_needs_a_face() -> None:
    with pytest.raises(BadInput, match=r"image=\.\.\. or avatar="):
        FlowPortraitAvatarSession()
