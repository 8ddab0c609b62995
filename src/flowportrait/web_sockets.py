"""WebSockets of a server of this package: limits that uvicorn itself does not have.

A client that stops reading holds what was sent to it, and a close frame waits behind that. So a connection whose
application is done with it is cut off a few seconds later, whether its client reads or not.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from typing import Any

PING_SECONDS = 20.0
"""Seconds between two pings, and in which each must be answered."""
SEND_BUFFER = 2**17
"""Bytes that the system holds for a client; by itself it would hold megabytes, which is seconds of old pictures."""
LINGER_SECONDS = 5.0
"""Seconds in which a client may read the last messages and answer the close frame."""


def websocket_settings(max_message: int) -> dict[str, Any]:
    """Return the settings of uvicorn (``make_server``) with which a server accepts WebSockets.

    Args:
        max_message: bytes of the largest message.
    """
    return {
        "ws": _bounded_protocol(), "ws_max_size": max_message, "ws_ping_interval": PING_SECONDS,
        # Pictures and sound do not shrink, and a small compressed message may unpack to a large one.
        "ws_ping_timeout": PING_SECONDS, "ws_per_message_deflate": False,
    }  # fmt: skip


@functools.cache
def _bounded_protocol() -> Any:
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    class BoundedWebSocketProtocol(WebSocketsSansIOProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

        def on_task_complete(self, task: asyncio.Task[None]) -> None:
            super().on_task_complete(task)
            self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    return BoundedWebSocketProtocol
