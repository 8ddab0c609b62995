"""A client of ``flowportrait serve`` in one file: it needs Python 3.11, ``websockets`` and ``numpy``, not FlowPortrait.

    async with LiveClient("http://127.0.0.1:7880", token=None) as client:
        await client.push(samples, rate=24_000)         # or: await client.speak("Good day.")
        await client.finish()
        async for frame in client.frames():             # 25 a second
            frame.jpeg, frame.sound, frame.picture()    # bytes, [n] int16 at client.rate, [size, size, 3] uint8

    push, speak, interrupt, … ─► WebSocket ─► server ─► a task that receives ─► queue ─► frames()

As a program it speaks a recording or a text, and saves what arrives, or prints figures:

    python flowportrait_live_client.py http://127.0.0.1:7880 --wav speech.wav --save answer.mp4
    python flowportrait_live_client.py http://127.0.0.1:7880 --text "Good day."

Show people the sentence ``client.notice``, "This face is generated.", near the picture.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import struct
import sys
import time
import wave
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

VERSION = 1
SPEECH, VOICE, PICTURE = 1, 2, 3
"""First byte of the binary messages that are sent."""
FRAME, INITIAL_SEGMENT, MEDIA_SEGMENT = 1, 2, 3
"""First byte of the binary messages that arrive."""
PIECE = 12_000
"""Samples of one message."""
MAX_WAITING = 250
"""Frames that wait for ``frames``; beyond them the oldest is dropped."""
READY_SECONDS = 60.0
"""Seconds in which the server must open a session."""
END_FRAMES = 13
"""Frames after speaking that the program still receives: the lips come to rest."""
_HEAD = struct.Struct("<BII")


class LiveClientError(Exception):
    """A refusal of the server or a lost connection, as one sentence."""


@dataclass(frozen=True)
class ReceivedFrame:
    """One frame.

    Attributes:
        index: its number; its time is index / 25 s.
        jpeg: the picture; empty where the server dropped it for a slow client.
        sound: its 40 ms of sound, ``[n]`` int16.
        received: when it arrived, in seconds of ``time.monotonic``.
    """

    index: int
    jpeg: bytes
    sound: np.ndarray
    received: float

    def picture(self) -> np.ndarray:
        """Return the picture ``[size, size, 3]`` uint8 RGB; this needs Pillow."""
        from io import BytesIO

        from PIL import Image

        return np.asarray(Image.open(BytesIO(self.jpeg)).convert("RGB"))


class LiveClient:
    """A session with a live avatar, over a WebSocket."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        image: str | None = None,
        size: int | None = None,
        video: str = "jpeg",
        speech_rate: int = 24_000,
        listen_rate: int = 16_000,
        on_message: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Store the settings; ``async with`` connects.

        Args:
            url: address of the server, such as ``http://127.0.0.1:7880``.
            token: the server's token, where it asks for one.
            image: id of an uploaded photo; the server's own photo by default.
            size: side of the picture in pixels; the server's choice by default.
            video: ``jpeg`` for ``frames``, or ``mp4`` for ``segments``.
            speech_rate: rate in Hz at which speech is sent; other rates are converted to it.
            listen_rate: the same for the voice that the face listens to.
            on_message: called with every control message of the server.
        """
        parts = urlsplit(url if "//" in url else f"http://{url}")
        scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
        self.address = urlunsplit((scheme, parts.netloc, parts.path.rstrip("/") + "/live/ws", "", ""))
        self._start = {
            "type": "start", "version": VERSION, "token": token, "image": image, "size": size, "video": video,
            "speech_rate": speech_rate, "listen_rate": listen_rate,
        }  # fmt: skip
        self._rates = {SPEECH: speech_rate, VOICE: listen_rate}
        self._resamplers: dict[int, _Resampler] = {}
        self._on_message = on_message
        self._socket: ClientConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiting: deque[ReceivedFrame | bytes] = deque()
        self._news = asyncio.Event()
        self._pongs: dict[int, asyncio.Future[None]] = {}
        self.state = "idle"
        """``idle``, ``listening``, ``speaking`` or ``interrupted``."""
        self.session, self.size, self.rate, self.mime, self.notice = "", 0, 0, "", ""
        self.stats: dict[str, Any] = {}
        """The newest ``stats`` message: frame, late_frames, queued_seconds."""
        self.dropped = 0
        """Frames that were dropped here because ``frames`` was not read."""
        self.closed: str | None = None
        """Why the session has ended; None while it goes on."""

    # --- The connection ---

    async def __aenter__(self) -> LiveClient:
        """Connect and wait until the session is open.

        Raises:
            LiveClientError: the server refuses, or does not answer.
        """
        try:
            self._socket = await connect(self.address, max_size=2**24, compression=None)
            await self._send(self._start)
            async with asyncio.timeout(READY_SECONDS):
                ready = await self._receive_ready(self._socket)
        except InvalidStatus as error:
            body = error.response.body.decode(errors="replace") if error.response.body else ""
            raise LiveClientError(_detail(body) or str(error)) from error
        except TimeoutError as error:
            await self.close()
            raise LiveClientError("The server did not open a session in time.") from error
        except (OSError, ConnectionClosed) as error:
            raise LiveClientError(f"No connection to {self.address} ({error}): is the server running?") from error
        self.session, self.size, self.rate = ready["session"], ready["size"], ready["rate"]
        self.mime, self.notice = ready["mime"], ready["notice"]
        self._task = asyncio.create_task(self._receive(self._socket))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the session."""
        await self.close()

    async def close(self) -> None:
        """End the session; ``frames`` ends."""
        if self._socket is None:
            return
        with contextlib.suppress(LiveClientError):
            await self._send({"type": "close"})
        await self._socket.close()
        if self._task is not None:
            await self._task

    async def _receive_ready(self, socket: ClientConnection) -> dict[str, Any]:
        async for data in socket:
            if isinstance(data, str):
                message = json.loads(data)
                self._notify(message)
                if message["type"] == "ready":
                    return message
                if message["type"] in ("closed", "error"):
                    raise LiveClientError(message.get("reason") or message["message"])
        raise LiveClientError("The server closed the connection.")

    async def _receive(self, socket: ClientConnection) -> None:
        """Receive all the time, so that a client who looks at no frames is not taken for a slow one."""
        try:
            async for data in socket:
                if isinstance(data, str):
                    self._take(json.loads(data))
                elif data[0] == FRAME:
                    self._queue(_read_frame(data))
                else:
                    self._queue(data[1:])
        except ConnectionClosed:
            pass
        finally:
            self.closed = self.closed or "The connection was closed."
            for waiting in self._pongs.values():
                waiting.cancel()
            self._news.set()

    def _take(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "state":
                self.state = message["state"]
            case "stats":
                self.stats = message
            case "closed":
                self.closed = message["reason"]
            case "pong" if message["id"] in self._pongs:
                self._pongs.pop(message["id"]).set_result(None)
        self._notify(message)

    def _notify(self, message: dict[str, Any]) -> None:
        if self._on_message is not None:
            self._on_message(message)

    def _queue(self, part: ReceivedFrame | bytes) -> None:
        # Segments of a file are all needed, frames are not.
        if isinstance(part, ReceivedFrame) and len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(part)
        self._news.set()

    async def _send(self, message: dict[str, Any] | bytes) -> None:
        if self._socket is None:
            raise LiveClientError("There is no session: use the client in `async with`.")
        try:
            await self._socket.send(message if isinstance(message, bytes) else json.dumps(message))
        except ConnectionClosed as error:
            raise LiveClientError(self.closed or "The connection was closed.") from error

    # --- What is sent ---

    async def speak(self, text: str, voice: str | None = None) -> None:
        """Speak a text."""
        await self._send({"type": "speak", "text": text, "voice": voice})

    async def push(self, samples: np.ndarray | bytes, rate: int | None = None) -> None:
        """Speak samples.

        Args:
            samples: mono ``[n]``, int16 or floats within ±1, or bytes of 16-bit little-endian mono.
            rate: sample rate in Hz; ``speech_rate`` by default.
        """
        await self._send_sound(SPEECH, samples, rate)

    async def hear(self, samples: np.ndarray | bytes, rate: int | None = None) -> None:
        """Give the face the other side's voice to listen to; arguments as for ``push``."""
        await self._send_sound(VOICE, samples, rate)

    async def finish(self) -> None:
        """End the utterance: what was pushed is spoken to its end."""
        self._resamplers.pop(SPEECH, None)
        await self._send({"type": "finish"})

    async def interrupt(self) -> None:
        """Stop speaking."""
        self._resamplers.pop(SPEECH, None)
        await self._send({"type": "interrupt"})

    async def drive(self, jpeg: bytes | None) -> None:
        """Let the face follow the face in a picture of a webcam; None ends it.

        Args:
            jpeg: the picture; about 12 a second, 320 pixels wide, are enough.
        """
        await self._send({"type": "camera", "use": "off" if jpeg is None else "drive"})
        if jpeg is not None:
            await self._send(bytes([PICTURE]) + jpeg)

    async def show_emotion(self, weights: dict[str, float]) -> None:
        """Show an emotion from now on, such as ``{"happy": 0.6}``; ``{}`` ends it.

        Args:
            weights: from 0 to 1, and 1 in all: happy, sad, angry, surprised, afraid.
        """
        await self._send({"type": "emotion", "weights": weights})

    async def send(self, message: dict[str, Any]) -> None:
        """Send a control message or an event of OpenAI's Realtime interface as it is."""
        await self._send(message)

    async def ping(self) -> float:
        """Return the seconds that a message takes to the server and back.

        Raises:
            LiveClientError: the session ends before the answer.
        """
        number, sent = len(self._pongs) + time.monotonic_ns() % 2**31, time.monotonic()
        self._pongs[number] = answer = asyncio.get_running_loop().create_future()
        await self._send({"type": "ping", "id": number})
        try:
            await answer
        except asyncio.CancelledError:
            if self.closed is not None:
                raise LiveClientError(self.closed) from None
            raise
        return time.monotonic() - sent

    async def _send_sound(self, kind: int, samples: np.ndarray | bytes, rate: int | None) -> None:
        sound = _to_int16(samples)
        if rate is not None and rate != self._rates[kind]:
            resampler = self._resamplers.get(kind)
            if resampler is None or resampler.rate != rate:
                resampler = self._resamplers[kind] = _Resampler(rate, self._rates[kind])
            sound = resampler.push(sound)
        for begin in range(0, len(sound), PIECE):
            await self._send(bytes([kind]) + sound[begin : begin + PIECE].astype("<i2").tobytes())

    # --- What arrives ---

    async def frames(self) -> AsyncIterator[ReceivedFrame]:
        """Yield every frame until the session ends."""
        async for part in self._parts():
            if isinstance(part, ReceivedFrame):
                yield part

    async def segments(self) -> AsyncIterator[bytes]:
        """Yield the pieces of a fragmented mp4 (``video="mp4"``); written one after another they are a file."""
        async for part in self._parts():
            if isinstance(part, bytes):
                yield part

    async def _parts(self) -> AsyncIterator[ReceivedFrame | bytes]:
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self.closed is not None:
                return
            self._news.clear()
            await self._news.wait()


class _Resampler:
    """Changes the rate of 16-bit samples piece by piece: means where there become fewer, else straight lines."""

    def __init__(self, rate: int, wanted: int) -> None:
        self.rate, self._step = rate, rate / wanted
        self._rest, self._position = np.zeros(0), 0.0

    def push(self, samples: np.ndarray) -> np.ndarray:
        sound = np.concatenate([self._rest, samples])
        width = max(1, round(self._step))
        count = max(0, int(np.ceil((len(sound) - width - self._position) / self._step)))
        positions = self._position + self._step * np.arange(count)
        # The mean of the line between samples over `width` samples is a difference of its sums.
        sums = np.concatenate([[0.0], np.cumsum(sound)])
        grid = np.arange(len(sums))
        changed = (np.interp(positions + width, grid, sums) - np.interp(positions, grid, sums)) / width
        self._position += self._step * count
        used = min(int(self._position), len(sound))
        self._rest, self._position = sound[used:], self._position - used
        return np.rint(changed).astype(np.int16)


def _to_int16(samples: np.ndarray | bytes) -> np.ndarray:
    if isinstance(samples, bytes | bytearray | memoryview):
        return np.frombuffer(samples, "<i2")
    if np.issubdtype(samples.dtype, np.floating):
        return (np.clip(samples, -1, 1) * 32767).astype(np.int16)
    return samples.astype(np.int16, copy=False)


def _read_frame(data: bytes) -> ReceivedFrame:
    _, index, length = _HEAD.unpack_from(data)
    end = _HEAD.size + length
    return ReceivedFrame(index, data[_HEAD.size : end], np.frombuffer(data, "<i2", offset=end), time.monotonic())


def _detail(body: str) -> str:
    with contextlib.suppress(ValueError, AttributeError):
        return str(json.loads(body).get("detail") or "")
    return ""


# --- As a program -----------------------------------------------------------------------


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Return mono samples ``[n]`` int16 and their rate of a 16-bit wav file.

    Raises:
        LiveClientError: the file is none.
    """
    try:
        with wave.open(str(path)) as file:
            if file.getsampwidth() != 2:
                raise LiveClientError(f"{path} has {8 * file.getsampwidth()} bits a sample: save it with 16.")
            sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
            return sound.mean(1).astype(np.int16), file.getframerate()
    except (OSError, EOFError, wave.Error) as error:
        raise LiveClientError(f"{path} cannot be read as a wav file ({error}).") from error


async def run(arguments: argparse.Namespace) -> None:
    """Speak, and save or measure what arrives."""
    sound = read_wav(arguments.wav) if arguments.wav else None
    spoken, video = asyncio.Event(), "mp4" if arguments.save else "jpeg"
    has_spoken = False

    def listen(message: dict[str, Any]) -> None:
        nonlocal has_spoken
        if message["type"] == "error":
            print(message["message"], file=sys.stderr)
            spoken.set()
        if message["type"] == "state":
            if has_spoken and message["state"] == "idle":
                spoken.set()
            has_spoken = has_spoken or message["state"] == "speaking"

    async with LiveClient(
        arguments.url, arguments.token, video=video, size=arguments.size, on_message=listen
    ) as client:
        print(client.notice, f"{client.size} px, sound of {client.rate} Hz.", file=sys.stderr)
        ending = asyncio.create_task(_end_after(client, spoken))
        begun = time.monotonic()
        if sound is not None:
            await client.push(*sound)
            await client.finish()
        else:
            await client.speak(arguments.text)
        if arguments.save:
            with arguments.save.open("wb") as file:
                async for segment in client.segments():
                    file.write(segment)
            print(f"{arguments.save}: {arguments.save.stat().st_size / 1000:.0f} kB")
        else:
            print(json.dumps(measure([frame async for frame in client.frames()], begun)))
        if not spoken.is_set():
            raise LiveClientError(client.closed or "The session ended early.")
        await ending


async def _end_after(client: LiveClient, spoken: asyncio.Event) -> None:
    await spoken.wait()
    await asyncio.sleep(END_FRAMES / 25)
    await client.close()


def measure(frames: list[ReceivedFrame], begun: float) -> dict[str, Any]:
    """Return figures of received frames.

    Args:
        frames: the frames in order.
        begun: when the speech was sent, in seconds of ``time.monotonic``.
    """
    intervals = np.diff([frame.received for frame in frames]) * 1000
    loud = next((frame for frame in frames if np.abs(frame.sound.astype(int)).max(initial=0) > 300), None)
    return {
        "frames": len(frames),
        "missing": int(frames[-1].index - frames[0].index + 1 - len(frames)) if frames else 0,
        "interval_ms_p50": round(float(np.median(intervals)), 1) if len(intervals) else None,
        "interval_ms_p95": round(float(np.percentile(intervals, 95)), 1) if len(intervals) else None,
        "speech_to_sound_ms": round(1000 * (loud.received - begun)) if loud else None,
        "kilobytes_per_second": round(float(np.mean([len(frame.jpeg) for frame in frames])) * 25 / 1000)
        if frames
        else None,
    }


def main() -> int:
    """Run the program; returns its exit code."""
    parser = argparse.ArgumentParser(description="Speak through a live avatar of `flowportrait serve`.")
    parser.add_argument("url", help="address of the server, such as http://127.0.0.1:7880")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--wav", type=Path, help="16-bit wav file that is spoken")
    what.add_argument("--text", help="text that is spoken")
    parser.add_argument("--token", help="the server's token")
    parser.add_argument("--size", type=int, help="side of the picture in pixels")
    parser.add_argument("--save", type=Path, help="mp4 file to write; without it, figures are printed")
    try:
        asyncio.run(run(parser.parse_args()))
    except LiveClientError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
