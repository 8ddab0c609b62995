"""What the Pipecat examples share: a page with WebRTC, and a recorded question with the answer as a video file.

microphone in the page ─► SmallWebRTCTransport ─► the agent's services ─► SmallWebRTCTransport ─► face in the page
question.wav ─► RecordedInput ─► the agent's services ─► VideoFileOutput ─► answer.mp4
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import HTMLResponse
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    CancelWorkerFrame,
    EndFrame,
    EndWorkerFrame,
    Frame,
    InputAudioRawFrame,
    OutputAudioRawFrame,
    OutputImageRawFrame,
    OutputTransportReadyFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.base_transport import TransportParams
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
from pipecat.transports.smallwebrtc.request_handler import SmallWebRTCRequest, SmallWebRTCRequestHandler
from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport
from pipecat.workers.runner import WorkerRunner

from flowportrait.media.audio import read_audio

Services = Callable[[], Sequence[FrameProcessor]]
IN_RATE, OUT_RATE, FPS = 16_000, 24_000, 25

PAGE = """<!doctype html><meta charset="utf-8"><title>Voice agent</title>
<video id="face" autoplay playsinline></video><p><button id="start">Talk</button> This face is generated.</p>
<script>
start.onclick = async () => {
  start.disabled = true;
  const peer = new RTCPeerConnection();
  const microphone = await navigator.mediaDevices.getUserMedia({audio: {echoCancellation: true}});
  peer.addTransceiver(microphone.getTracks()[0], {direction: "sendrecv"});
  peer.addTransceiver("video", {direction: "recvonly"});
  face.srcObject = new MediaStream();
  peer.ontrack = (event) => face.srcObject.addTrack(event.track);
  await peer.setLocalDescription();
  await new Promise((done) => peer.iceGatheringState === "complete" ? done()
    : peer.onicegatheringstatechange = () => peer.iceGatheringState === "complete" && done());
  const {sdp, type} = peer.localDescription;
  const answer = await fetch("/api/offer", {method: "POST", headers: {"Content-Type": "application/json"},
                                            body: JSON.stringify({sdp, type})});
  await peer.setRemoteDescription(await answer.json());
};
</script>"""


async def run_pipeline(processors: Sequence[FrameProcessor]) -> None:
    """Run processors as one pipeline until it ends."""
    parameters = PipelineParams(audio_in_sample_rate=IN_RATE, audio_out_sample_rate=OUT_RATE)
    worker = PipelineWorker(Pipeline(list(processors)), params=parameters, enable_rtvi=False)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


def make_app(services: Services, size: int) -> FastAPI:
    """Return a page on which one talks to the agent; every visitor has a pipeline of ``services()``."""
    app, handler = FastAPI(), SmallWebRTCRequestHandler()

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE)

    @app.post("/api/offer")
    async def offer(body: dict[str, Any], tasks: BackgroundTasks) -> dict[str, str] | None:
        async def connect(connection: SmallWebRTCConnection) -> None:
            tasks.add_task(talk, connection)

        return await handler.handle_web_request(SmallWebRTCRequest.from_dict(body), connect)

    async def talk(connection: SmallWebRTCConnection) -> None:
        transport = SmallWebRTCTransport(
            webrtc_connection=connection,
            params=TransportParams(
                audio_in_enabled=True, audio_out_enabled=True, video_out_enabled=True, video_out_is_live=True,
                video_out_width=size, video_out_height=size, video_out_framerate=FPS,
            ),
        )  # fmt: skip
        ending = EndOnDisconnect()

        @transport.event_handler("on_client_disconnected")
        async def on_client_disconnected(_: Any, __: Any) -> None:
            await ending.end()

        await run_pipeline([transport.input(), ending, *services(), transport.output()])

    return app


class EndOnDisconnect(FrameProcessor):
    """Ends the pipeline when the visitor has left."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)

    async def end(self) -> None:
        await self.push_frame(CancelWorkerFrame(), FrameDirection.UPSTREAM)


class RecordedInput(FrameProcessor):
    """Plays a recorded question into the pipeline as a microphone would, then silence; ends it after the answer."""

    def __init__(self, question: Path, longest: float = 60.0) -> None:
        super().__init__()
        self._pcm = (read_audio(question) * 32767).astype("<i2")
        self._longest, self._answered = longest, asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, BotStoppedSpeakingFrame):
            self._answered.set()
        elif isinstance(frame, OutputTransportReadyFrame) and self._task is None:
            self._task = self.create_task(self._play())
        await self.push_frame(frame, direction)

    async def _play(self) -> None:
        step = IN_RATE // 50
        loop = asyncio.get_running_loop()
        begin, sent = loop.time(), 0
        while not self._answered.is_set() and sent / 50 < self._longest:
            part = self._pcm[sent * step : (sent + 1) * step]
            part = np.concatenate([part, np.zeros(step - len(part), "<i2")])
            await self.push_frame(InputAudioRawFrame(part.tobytes(), IN_RATE, 1))
            sent += 1
            await asyncio.sleep(max(0.0, begin + sent / 50 - loop.time()))
        await self.push_frame(EndWorkerFrame(), FrameDirection.UPSTREAM)


class VideoFileOutput(FrameProcessor):
    """Writes the pictures and the speech of a pipeline to an mp4 file, as an output transport would show them."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__()
        self._file = av.open(str(path), "w")
        self._video = self._file.add_stream("libx264", rate=FPS, options={"crf": "20"})
        self._video.width = self._video.height = size
        self._video.pix_fmt = "yuv420p"
        self._audio = self._file.add_stream("aac", rate=OUT_RATE, layout="mono")
        self._pictures, self._speaks, self._closed = 0, False, False

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, OutputImageRawFrame):
            self._write_picture(frame)
        elif isinstance(frame, OutputAudioRawFrame):
            self._write_sound(frame)
            if isinstance(frame, TTSAudioRawFrame) and not self._speaks:
                self._speaks = True
                await self.broadcast_frame(BotStartedSpeakingFrame)
        elif isinstance(frame, TTSStoppedFrame) and self._speaks:
            self._speaks = False
            await self.broadcast_frame(BotStoppedSpeakingFrame)
        elif isinstance(frame, EndFrame):
            self._close()
        await self.push_frame(frame, direction)
        if isinstance(frame, StartFrame):
            await self.push_frame(OutputTransportReadyFrame(), FrameDirection.UPSTREAM)

    def _write_picture(self, frame: OutputImageRawFrame) -> None:
        width, height = frame.size
        pixels = np.frombuffer(frame.image, np.uint8).reshape(height, width, 3)
        picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        picture.pts, picture.time_base = self._pictures, Fraction(1, FPS)
        self._pictures += 1
        self._file.mux(self._video.encode(picture))

    def _write_sound(self, frame: OutputAudioRawFrame) -> None:
        # A sound follows its picture: it begins when that picture is shown.
        sound = av.AudioFrame.from_ndarray(np.frombuffer(frame.audio, "<i2")[None], format="s16", layout="mono")
        sound.sample_rate, sound.time_base = frame.sample_rate, Fraction(1, frame.sample_rate)
        sound.pts = (self._pictures - 1) * frame.sample_rate // FPS
        self._file.mux(self._audio.encode(sound))

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._file.mux(self._video.encode(None))
            self._file.mux(self._audio.encode(None))
            self._file.close()


async def answer_recording(services: Services, question: Path, output: Path, size: int) -> None:
    """Ask the agent a recorded question, and write what its face answers to an mp4 file."""
    await run_pipeline([RecordedInput(question), *services(), VideoFileOutput(output, size)])
