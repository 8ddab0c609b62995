"""Limits of a live server: what one client may send, hold and keep open.

Everything that arrives is bounded here: sizes of messages, rates, waiting speech, and the life of a session. The limits
of HTTP itself (heads, bodies, connections) are those of every server (``web_server``).
"""

from __future__ import annotations

from dataclasses import dataclass

from flowportrait.config import at_least


@dataclass(frozen=True)
class LiveLimits:
    """Limits of the live server."""

    letters: int = 2000
    """Characters of one text that is spoken."""
    waiting_texts: int = 8
    """Texts that may wait to be spoken."""
    seconds: float = 60.0
    """Seconds of speech that may wait to be spoken."""
    message_kilobytes: int = 1024
    """Size of one message in kB."""
    messages: int = 250
    """Messages per second."""
    kilobytes: int = 4096
    """kB per second that one client may send."""
    picture_pixels: int = 2_100_000
    """Pixels of one picture of a webcam."""
    start_seconds: float = 10.0
    """Seconds in which a WebSocket must send its first message."""
    behind_seconds: float = 5.0
    """Seconds of sound that may wait for a slow client before its session ends."""
    idle_minutes: float = 10.0
    """Minutes without sound, pictures or commands of the client after which a session ends."""
    session_minutes: float = 0.0
    """Longest duration of a session in minutes; 0 sets no limit."""
    sessions_per_address: int = 4
    """Sessions of one client address; the machine itself is exempt."""
    photo_megabytes: int = 25
    """Size of an uploaded photo in MB."""
    photo_hours: float = 1.0
    """Hours after which an uploaded photo is deleted."""
    kept_megabytes: int = 500
    """Total size in MB of uploaded photos; the oldest are deleted first."""

    def __post_init__(self) -> None:
        at_least(self, letters=1, waiting_texts=1, seconds=1, message_kilobytes=16, messages=25, kilobytes=64,
                 picture_pixels=4096, start_seconds=0.1, behind_seconds=0.5, idle_minutes=0.01, session_minutes=0,
                 sessions_per_address=1, photo_megabytes=1, photo_hours=0.01, kept_megabytes=1)  # fmt: skip
