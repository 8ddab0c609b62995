"""A live avatar: one portrait that idles, listens, speaks, and can be interrupted, for as long as a program runs.

    pushed sound ─► session: motion and sound of every 1/25 s ─► avatar: pictures, on the clock

``session`` decides what the face does at every frame and knows no threads and no pictures; ``idle`` moves the face
while nobody speaks; ``sound`` takes pushed samples of any rate; ``pacing`` decides which picture is drawn next;
``avatar`` draws and keeps the clock. ``driving`` turns webcam pictures into motion, and ``virtual_camera`` shows the
face as a webcam.

The server: ``protocol`` and ``limits`` say what clients may send; ``connection`` is one avatar with one client, carried
by ``websocket`` or ``webrtc``; ``host`` opens as many as ``capacity`` has measured; ``server`` is the web application.
With several processes ``workers`` starts them and ``relay`` is the application in front. ``playback`` counts played
speech for the plug-ins ``pipecat`` and ``livekit``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowportrait.live.avatar import LiveAvatar, LivePortrait

__all__ = ["LiveAvatar", "LivePortrait"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'flowportrait.live' has no attribute {name!r}")
    from flowportrait.live import avatar

    return getattr(avatar, name)
