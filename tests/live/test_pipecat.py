"""Claims about the video service for Pipecat, in a real pipeline of ``pipecat-ai``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pipecat")

import itertools

from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    MetricsFrame,
    OutputAudioRawFrame,
    OutputImageRawFrame,
    ServiceUpdateSettingsFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
)
from pipecat.metrics.metrics import TTFBMetricsData
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.utils.text.base_text_aggregator import TextType
from pipecat.workers.runner import WorkerRunner

from flowportrait.errors import BadInput
from flowportrait.live.avatar import LiveAvatar, LivePortrait
from flowportrait.live.pipecat import FlowPortraitVideoService
from flowportrait.media.audio import read_audio
from flowportrait.media.portrait import Portrait
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.samples import SPEECH

RATE = 24_000
SIZE = 128
PCM = (read_audio(SPEECH)[:48_000] * 32767).astype("<i2")


@pytest.fixture
def avatar(pipeline: AnimatePipeline, portrait: Portrait) -> Iterator[LiveAvatar]:
    avatar = LiveAvatar(portrait, checkpoint=pipeline, rate=RATE)
    yield avatar
    avatar.close()


class Sink(FrameProcessor):
    """Records what leaves a pipeline, with the time."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[tuple[float, Frame]] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction == FrameDirection.DOWNSTREAM:
            self.frames.append((time.monotonic(), frame))
        await self.push_frame(frame, direction)

    def of(self, kind: type) -> list[Any]:
        return [frame for _, frame in self.frames if isinstance(frame, kind)]


def voice_frames(pcm: np.ndarray, milliseconds: int = 20, rate: int = 16_000) -> list[TTSAudioRawFrame]:
    """A recording as a text-to-speech service sends it."""
    step = rate * milliseconds // 1000
    return [TTSAudioRawFrame(pcm[at : at + step].tobytes(), rate, 1) for at in range(0, len(pcm), step)]


def utterance(pcm: np.ndarray) -> list[Frame]:
    return [TTSStartedFrame(context_id="one"), *voice_frames(pcm), TTSStoppedFrame(context_id="one")]


async def play(service: FlowPortraitVideoService, script: Any, **params: Any) -> Sink:
    """Run a pipeline of the service and a sink while ``script(worker)`` puts frames in, to its end."""
    sink = Sink()
    worker = PipelineWorker(
        Pipeline([service, sink]), params=PipelineParams(audio_out_sample_rate=RATE, **params), enable_rtvi=False,
        cancel_on_idle_timeout=False,
    )  # fmt: skip
    started = asyncio.Event()

    @worker.event_handler("on_pipeline_started")
    async def on_started(_: Any, __: Any) -> None:
        started.set()

    async def put() -> None:
        await started.wait()
        try:
            await script(worker, sink)
        except BaseException:
            await worker.cancel()
            raise
        await worker.queue_frame(EndFrame())

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await asyncio.wait_for(asyncio.gather(runner.run(), put()), 60)
    return sink


def images(sink: Sink) -> np.ndarray:
    return np.stack([np.frombuffer(one.image, np.uint8).reshape(SIZE, SIZE, 3) for one in sink.of(OutputImageRawFrame)])


def test_speech_leaves_once_with_a_picture_for_every_40_milliseconds(avatar: LiveAvatar) -> None:
    async def script(worker: PipelineWorker, sink: Sink) -> None:
        await worker.queue_frames(utterance(PCM))

    sink = asyncio.run(play(FlowPortraitVideoService(avatar=avatar), script))
    kinds = [frame for _, frame in sink.frames if isinstance(frame, (OutputImageRawFrame, OutputAudioRawFrame))]
    speech = sink.of(TTSAudioRawFrame)
    assert all(len(frame.audio) == 2 * RATE // 25 and frame.context_id == "one" for frame in speech)
    # 3 s of speech: 75 frames, each directly behind its picture, and nothing twice.
    assert len(speech) == pytest.approx(75, abs=1)
    for before, frame in itertools.pairwise(kinds):
        if isinstance(frame, TTSAudioRawFrame):
            assert isinstance(before, OutputImageRawFrame)
    played = np.concatenate([np.frombuffer(frame.audio, "<i2") for frame in speech]).astype(float)
    expected = np.interp(np.arange(3 * RATE) / RATE, np.arange(len(PCM)) / 16_000, PCM.astype(float))
    shifts = [np.corrcoef(played[500 + s : 60_000 + s], expected[500:60_000])[0, 1] for s in range(-60, 60)]
    assert max(shifts) > 0.97, "the sound is the sound of the voice"
    times = [at for at, frame in sink.frames if isinstance(frame, OutputImageRawFrame)]
    assert times[-1] - times[0] == pytest.approx((len(times) - 1) / 25, abs=0.3), "25 pictures a second"


def test_other_frames_wait_for_the_audio_before_them(avatar: LiveAvatar) -> None:
    async def script(worker: PipelineWorker, sink: Sink) -> None:
        first, second = utterance(PCM[:16_000]), utterance(PCM[16_000:32_000])
        text = TTSTextFrame("after the first second", TextType.SENTENCE)
        await worker.queue_frames([*first, text, *second])

    sink = asyncio.run(play(FlowPortraitVideoService(avatar=avatar), script))
    order = [type(frame).__name__ for _, frame in sink.frames if not isinstance(frame, OutputImageRawFrame)]
    order = [name for name in order if name.startswith("TTS") or name == "EndFrame"]
    at = order.index("TTSTextFrame")
    assert order[:at].count("TTSAudioRawFrame") == pytest.approx(25, abs=1)
    assert order[at:].count("TTSAudioRawFrame") == pytest.approx(25, abs=1)
    assert order[0] == "TTSStartedFrame"
    assert order[at - 1] == "TTSStoppedFrame"
    assert order[at + 1] == "TTSStartedFrame"
    assert order[-2:] == ["TTSStoppedFrame", "EndFrame"]


def test_an_interruption_ends_speech_and_brings_the_lips_to_rest_within_300_ms(avatar: LiveAvatar) -> None:
    async def script(worker: PipelineWorker, sink: Sink) -> None:
        await worker.queue_frames([*utterance(PCM), TTSTextFrame("never said", TextType.SENTENCE)])
        while len(sink.of(TTSAudioRawFrame)) < 25:
            await asyncio.sleep(0.02)
        await worker.queue_frame(InterruptionFrame())
        await asyncio.sleep(1.5)

    sink = asyncio.run(play(FlowPortraitVideoService(avatar=avatar), script))
    interrupted = next(at for at, frame in sink.frames if isinstance(frame, InterruptionFrame))
    assert not [1 for at, frame in sink.frames if isinstance(frame, TTSAudioRawFrame) and at > interrupted]
    fading = [at for at, frame in sink.frames if type(frame) is OutputAudioRawFrame]
    assert 1 <= len(fading) <= 4
    assert max(fading) - interrupted < 0.3
    assert not sink.of(TTSTextFrame), "what was not said is not remembered"
    times = np.array([at for at, frame in sink.frames if isinstance(frame, OutputImageRawFrame)])
    mouth = images(sink)[:, SIZE * 62 // 100 : SIZE * 80 // 100, SIZE // 3 : SIZE * 2 // 3].astype(float)
    moves = np.abs(np.diff(mouth, axis=0)).mean((1, 2, 3))
    speaking = moves[(times[1:] > interrupted - 0.6) & (times[1:] < interrupted)].mean()
    resting = moves[times[1:] > interrupted + 0.4].mean()
    assert resting < 0.5 * speaking


def test_the_first_moving_picture_comes_soon_and_is_measured(avatar: LiveAvatar) -> None:
    pushed: list[float] = []

    async def script(worker: PipelineWorker, sink: Sink) -> None:
        await asyncio.sleep(0.5)
        pushed.append(time.monotonic())
        await worker.queue_frames(utterance(PCM[:16_000]))

    sink = asyncio.run(play(FlowPortraitVideoService(avatar=avatar), script, enable_metrics=True))
    first = next(at for at, frame in sink.frames if isinstance(frame, TTSAudioRawFrame))
    values = [data.value for one in sink.of(MetricsFrame) for data in one.data if isinstance(data, TTFBMetricsData)]
    measured = [value for value in values if value > 0]
    assert len(measured) == 1
    assert measured[0] == pytest.approx(first - pushed[0], abs=0.1)
    assert first - pushed[0] < 1.0


def test_the_face_listens_to_the_user_unless_told_otherwise(avatar: LiveAvatar) -> None:
    states: list[str] = []
    service = FlowPortraitVideoService(avatar=avatar)

    async def talk(worker: PipelineWorker) -> str:
        for at in range(0, 32_000, 640):
            await worker.queue_frame(InputAudioRawFrame(PCM[at : at + 640].tobytes(), 16_000, 1))
            await asyncio.sleep(0.04)
            states.append(avatar.state)
        return "listening" if "listening" in states else states[-1]

    async def script(worker: PipelineWorker, sink: Sink) -> None:
        assert await talk(worker) == "listening"
        delta = FlowPortraitVideoService.Settings(listen=False)
        await worker.queue_frame(ServiceUpdateSettingsFrame(delta=delta, service=service))
        while avatar.state != "idle":
            await asyncio.sleep(0.1)
        states.clear()
        assert await talk(worker) == "idle"

    sink = asyncio.run(play(service, script))
    assert len(sink.of(InputAudioRawFrame)) == 100, "the user's audio goes on"
    assert not sink.of(OutputAudioRawFrame)


def test_a_service_makes_and_closes_its_own_avatar(pipeline: AnimatePipeline, portrait: Portrait) -> None:
    service = FlowPortraitVideoService(image=portrait, checkpoint=pipeline)
    made: list[LiveAvatar] = []

    async def script(worker: PipelineWorker, sink: Sink) -> None:
        assert service.avatar is not None
        made.append(service.avatar)
        while len(sink.of(OutputImageRawFrame)) < 5:
            await asyncio.sleep(0.02)

    asyncio.run(play(service, script))
    assert made[0].rate == RATE
    with pytest.raises(BadInput, match="closed"):
        made[0].push(PCM, 16_000)


def test_a_service_needs_a_face() -> None:
    with pytest.raises(BadInput, match=r"image=\.\.\. or avatar="):
        FlowPortraitVideoService()


@pytest.mark.slow
def test_a_webrtc_client_receives_the_face_and_its_speech(
    avatar: LiveAvatar, pipeline: AnimatePipeline, portrait: Portrait
) -> None:
    """Pipecat's SmallWebRTC transport and a client of aiortc, over loopback."""
    aiortc = pytest.importorskip("aiortc")
    from pipecat.transports.base_transport import TransportParams
    from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
    from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport

    pictures: list[np.ndarray] = []
    sounds: list[np.ndarray] = []

    async def read(track: Any) -> None:
        while True:
            frame = await track.recv()
            if track.kind == "video":
                pictures.append(frame.to_ndarray(format="rgb24"))
            else:
                sounds.append(frame.to_ndarray().ravel())

    async def run() -> None:
        client = aiortc.RTCPeerConnection()
        readers: list[asyncio.Task] = []
        client.on("track", lambda track: readers.append(asyncio.create_task(read(track))))
        for kind in ("audio", "video"):
            client.addTransceiver(kind, direction="recvonly")
        await client.setLocalDescription(await client.createOffer())
        connection = SmallWebRTCConnection()
        await connection.initialize(sdp=client.localDescription.sdp, type="offer")
        answer = connection.get_answer()
        assert answer is not None
        transport = SmallWebRTCTransport(
            webrtc_connection=connection,
            params=TransportParams(
                audio_out_enabled=True, video_out_enabled=True, video_out_is_live=True, video_out_framerate=25,
                video_out_width=SIZE, video_out_height=SIZE,
            ),
        )  # fmt: skip
        service = FlowPortraitVideoService(avatar=avatar)
        worker = PipelineWorker(
            Pipeline([service, transport.output()]), params=PipelineParams(audio_out_sample_rate=RATE),
            enable_rtvi=False, cancel_on_idle_timeout=False,
        )  # fmt: skip
        connected = asyncio.Event()
        transport.event_handler("on_client_connected")(lambda *_: connected.set())
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        running = asyncio.create_task(runner.run())
        await client.setRemoteDescription(aiortc.RTCSessionDescription(answer["sdp"], answer["type"]))
        await asyncio.wait_for(connected.wait(), 30)
        await worker.queue_frames(utterance(PCM))
        for _ in range(300):
            await asyncio.sleep(0.1)
            if len(pictures) > 100 and any(np.abs(sound).max() > 3000 for sound in sounds):
                break
        await worker.cancel()
        await asyncio.wait_for(running, 30)
        for reader in readers:
            reader.cancel()
        await client.close()

    asyncio.run(run())
    assert len(pictures) > 100
    assert pictures[-1].shape == (SIZE, SIZE, 3)
    neutral = LivePortrait(portrait, checkpoint=pipeline).neutral_picture
    assert np.abs(pictures[-1].astype(float) - neutral).mean() < 20, "it is the face"
    assert max(np.abs(sound).max() for sound in sounds) > 3000, "the voice is heard"
