"""An agent of LiveKit with a face that is drawn where the agent runs.

    room ─► AgentSession (speech to speech by OpenAI Realtime) ─► FlowPortraitAvatarSession ─► room

    pip install 'flowportrait[livekit]' livekit-plugins-openai
    LIVEKIT_URL=... LIVEKIT_API_KEY=... LIVEKIT_API_SECRET=... OPENAI_API_KEY=... \\
        FLOWPORTRAIT_IMAGE=me.jpg python -m examples.voice_agents.livekit_agent dev

It needs a LiveKit server (``livekit-server --dev`` is one) and a participant in its room, for example the agents
playground of LiveKit. The face takes the sound of any other model or voice of LiveKit as well.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, cli

from flowportrait.live.livekit import FlowPortraitAvatarSession

NEEDED = ("LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET", "OPENAI_API_KEY", "FLOWPORTRAIT_IMAGE")
MODEL = "gpt-realtime"
server = AgentServer()


@server.rtc_session()
async def entrypoint(context: JobContext) -> None:
    """Join a room with an agent that has a face."""
    from livekit.plugins import openai

    session: AgentSession = AgentSession(llm=openai.realtime.RealtimeModel(model=MODEL))
    avatar = FlowPortraitAvatarSession(image=os.environ["FLOWPORTRAIT_IMAGE"], size=384)
    await context.connect()
    await avatar.start(session, room=context.room)
    await session.start(Agent(instructions="Answer in one or two short sentences."), room=context.room)
    await session.generate_reply(instructions="Greet the user.")


def main() -> int:
    if missing := [name for name in NEEDED if not os.environ.get(name)]:
        print(f"Set {', '.join(missing)} in the environment; see the beginning of this file.", file=sys.stderr)
        return 2
    if find_spec("livekit.plugins.openai") is None:
        print("This needs the package livekit-plugins-openai: pip install livekit-plugins-openai.", file=sys.stderr)
        return 2
    cli.run_app(server)
    return 0


if __name__ == "__main__":
    sys.exit(main())
