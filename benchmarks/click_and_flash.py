"""A source whose right answer is known: once a second a white picture and a click of sound, in the same frame.

    python -m benchmarks.click_and_flash [--delay FRAMES] [--stall MS]      serves it; prints its address

    frame n    n % 25 in 0, 1: white, else dark; in frame n % 25 == 0 a tone of 40 ms    ─► WebRTCPeer ─► browser

It takes the place of the avatar behind the same WebRTC transport. What a browser measures of it is the transport
alone: the ceiling of what the avatar can reach. With ``--delay`` the sound comes late, and with ``--stall`` the frames
do: what measures them must find both. A binary message turns the picture blue for some frames as soon as possible.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import numpy as np

from flowportrait.media.video import FPS

PERIOD = FPS
"""Frames from one flash to the next."""
FLASH_FRAMES = 2
TONE_HZ = 1000
DARK, WHITE, BLUE = (16, 16, 16), (255, 255, 255), (20, 20, 235)
ANSWER_FRAMES = 5
"""Frames that stay blue after a message."""
STALL_EVERY = 100
"""Frames from one stall to the next."""


def has_flash(index: int) -> bool:
    """Return whether frame ``index`` is white."""
    return index % PERIOD < FLASH_FRAMES


def flash_picture(index: int, size: int = 256) -> np.ndarray:
    """Return the picture ``[size, size, 3]`` uint8 of frame ``index``: white once a second, dark otherwise."""
    return np.full((size, size, 3), WHITE if has_flash(index) else DARK, np.uint8)


def click_sound(index: int, rate: int = 48_000, delay: int = 0) -> np.ndarray:
    """Return the sound ``[1, rate / 25]`` float32 of frame ``index``: a tone at every flash, silence otherwise.

    Args:
        index: number of the frame.
        rate: sample rate in Hz.
        delay: frames by which the sound is later than the picture.
    """
    count = rate // FPS
    if (index - delay) % PERIOD:
        return np.zeros((1, count), np.float32)
    return (0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(count) / rate)).astype(np.float32)[None]


class ClickAndFlashServer:
    """The test source behind ``POST /live/offer``, for any number of browsers.

    Args:
        delay: frames by which the sound is late.
        stall: milliseconds for which the sender sleeps every ``STALL_EVERY`` frames; what it missed follows at once.
        size: side of the pictures in pixels.
        rate: sample rate of the sound in Hz.
    """

    def __init__(self, delay: int = 0, stall: float = 0, size: int = 256, rate: int = 48_000) -> None:
        self.delay, self.stall, self.size, self.rate = delay, stall, size, rate
        self._tasks = set[asyncio.Task[None]]()

    async def answer(self, offer: dict[str, Any]) -> dict[str, Any]:
        """Answer an offer; the frames are sent from then on until the browser leaves."""
        from flowportrait.live.webrtc import WebRTCPeer

        ended, asked = asyncio.Event(), asyncio.Event()
        peer = await WebRTCPeer.answer(
            offer["sdp"], rate=self.rate, on_text=lambda text: None, on_binary=lambda data: asked.set(),
            on_microphone=lambda samples, rate: None, on_camera=lambda picture: None,
            on_closed=lambda reason: ended.set(),
        )  # fmt: skip
        task = asyncio.create_task(self._send(peer, ended, asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return {"type": "answer", "sdp": peer.answer_sdp, "session": f"{id(peer):x}"}

    async def _send(self, peer: Any, ended: asyncio.Event, asked: asyncio.Event) -> None:
        began, index, blue = time.monotonic(), 0, 0
        answer = np.full((self.size, self.size, 3), BLUE, np.uint8)
        pictures = {white: flash_picture(0 if white else FLASH_FRAMES, self.size) for white in (False, True)}
        while not ended.is_set():
            await asyncio.sleep(max(0.0, began + index / FPS - time.monotonic()))
            if self.stall and index % STALL_EVERY == STALL_EVERY - 1:
                await asyncio.sleep(self.stall / 1000)
            if asked.is_set():
                asked.clear()
                blue = ANSWER_FRAMES
            picture = answer if blue else pictures[has_flash(index)]
            peer.send_frame(index, picture, click_sound(index, self.rate, self.delay))
            index, blue = index + 1, max(0, blue - 1)
        await peer.close()


def click_and_flash_app(source: ClickAndFlashServer) -> Any:
    """Return the FastAPI app: an empty page at ``/``, and ``POST /live/offer``."""
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse

    import flowportrait.live.webrtc  # noqa: F401  (loaded now, so that the first offer does not wait for it)

    app = FastAPI()

    async def page() -> HTMLResponse:
        return HTMLResponse("<!doctype html><title>Click and flash</title>")

    async def offer(request: Request) -> JSONResponse:
        return JSONResponse(await source.answer(await request.json()), 201)

    # ``from __future__ import annotations`` hides the local names from FastAPI.
    page.__annotations__["return"], offer.__annotations__ = HTMLResponse, {"request": Request, "return": JSONResponse}
    app.get("/", response_model=None)(page)
    app.get("/healthz", response_model=None)(page)
    app.post("/live/offer", response_model=None)(offer)
    return app


def main() -> None:
    """Serve the source on a free port of this machine until Ctrl-C."""
    from flowportrait.web_server import bind_listener, listener_url, make_server

    parser = argparse.ArgumentParser(description="Serve a click and a flash once a second by WebRTC.")
    parser.add_argument("--delay", type=int, default=0, help="frames by which the sound is late")
    parser.add_argument("--stall", type=float, default=0, help="milliseconds of a stall every 100 frames")
    parser.add_argument("--size", type=int, default=256, help="side of the pictures in pixels")
    options = parser.parse_args()
    listener = bind_listener("127.0.0.1", 0)
    app = click_and_flash_app(ClickAndFlashServer(options.delay, options.stall, options.size))
    address = f"The test source is at {listener_url(listener)}/"
    make_server(app, lambda: print(address, flush=True)).run(sockets=[listener])


if __name__ == "__main__":
    main()
