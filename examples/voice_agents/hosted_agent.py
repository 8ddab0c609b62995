"""A voice agent with a face whose ears, mind and voice are a hosted model: OpenAI Realtime through Pipecat.

    microphone ─► OpenAI Realtime (speech to speech) ─► FlowPortrait's face on this machine ─► page

    pip install 'flowportrait[pipecat,serve]' aiortc
    OPENAI_API_KEY=... python -m examples.voice_agents.hosted_agent me.jpg

The key is read from the environment and sent to OpenAI only. The microphone's sound goes there too.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from examples.voice_agents.serving import make_app
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService

from flowportrait.live.pipecat import FlowPortraitVideoService

MODEL = "gpt-realtime"
INSTRUCTIONS = "You are a friendly assistant. Answer in one or two short sentences."


def make_services(image: Path, size: int, key: str, model: str = MODEL) -> list[FrameProcessor]:
    """Return the services of one conversation."""
    model_settings = OpenAIRealtimeLLMService.Settings(model=model, system_instruction=INSTRUCTIONS)
    context = LLMContextAggregatorPair(LLMContext())
    return [
        context.user(),
        OpenAIRealtimeLLMService(api_key=key, settings=model_settings),
        FlowPortraitVideoService(image=image, size=size),
        context.assistant(),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="A voice agent of a hosted model with a face of this machine.")
    parser.add_argument("image", type=Path, help="a photo of the face")
    parser.add_argument("--model", default=MODEL, help="the model of OpenAI Realtime")
    parser.add_argument("--size", type=int, default=384, help="side of the pictures in pixels")
    parser.add_argument("--port", type=int, default=7860, help="where the page is")
    options = parser.parse_args()
    key = os.environ.get("OPENAI_API_KEY", "")
    if not key:
        print(f"The model {options.model} needs a key: set OPENAI_API_KEY in the environment.", file=sys.stderr)
        return 2
    import uvicorn

    services = partial(make_services, options.image, options.size, key, options.model)
    print(f"Open http://127.0.0.1:{options.port} and press Talk.", flush=True)
    uvicorn.run(make_app(services, options.size), host="127.0.0.1", port=options.port, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
