"""``LiveConnection``: one avatar and one client, whatever carries the messages between them.

    client ─ text, binary, microphone, camera ─► LiveConnection ─► LiveAvatar: push, hear, speak, interrupt, drive
    client ◄─ send_text, send_frame ─ Transport ◄─ run(): frames, changes of state, stats ◄─┘

A transport never blocks the connection: it takes what it is given, and drops pictures where its client is too slow.
What a client sends is limited in size and rate; a message that cannot be used is answered with an error and changes
nothing. A client that ignores the limits ends its own session and no other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

import cv2
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.live import protocol
from flowportrait.live.avatar import LiveAvatar
from flowportrait.live.limits import LiveLimits
from flowportrait.live.metrics import LiveMetrics, TokenBucket
from flowportrait.speech.offered_voices import installed_voices
from flowportrait.web_server import strip_paths

STATS_SECONDS = 5.0
"""Seconds between two ``stats`` messages."""
MAX_ERRORS_IN_A_ROW = 100
"""Messages in a row that cannot be used after which a session ends."""
_JPEG_BEGIN = b"\xff\xd8\xff"


class LiveTransport(Protocol):
    """What carries a session to its client; ``WebRTCPeer`` and ``WebSocketTransport`` are such."""

    def send_frame(self, index: int, picture: np.ndarray, sound: np.ndarray) -> None:
        """Take one frame: picture ``[H, W, 3]`` uint8 RGB and sound ``[1, n]`` float32; never blocks."""

    def send_text(self, message: str) -> None:
        """Take one control message; never blocks."""


class LiveConnection:
    """The session of one client; all methods are called in the event loop."""

    def __init__(
        self,
        session: str,
        avatar: LiveAvatar,
        start: protocol.StartMessage,
        *,
        size: int,
        limits: LiveLimits,
        metrics: LiveMetrics,
        voice: str | None = None,
        requested_at: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a session; ``run`` carries it.

        Args:
            session: its id.
            avatar: the avatar, of which this connection is the only consumer; it is closed with the session.
            start: what the client asked for.
            size: side of the pictures in pixels.
            limits: what the client may do.
            metrics: where the session is counted.
            voice: the voice of texts that name none.
            requested_at: when the client asked, on the clock; now by default.
            clock: returns seconds; only differences count.
        """
        self.session, self.start, self.size = session, start, size
        self.closed_reason: str | None = None
        self.frame, self.state, self.late_frames = 0, avatar.state, 0
        self._avatar, self._limits, self._metrics, self._voice, self._clock = avatar, limits, metrics, voice, clock
        self.opened_at = clock()
        self._requested_at = self.opened_at if requested_at is None else requested_at
        self._transport: LiveTransport | None = None
        self._last_activity = self.opened_at
        self._pushed_at: float | None = None
        self._messages, self._bytes = TokenBucket(limits.messages, clock), TokenBucket(limits.kilobytes * 1000, clock)
        self._errors_in_a_row, self._queued_before = 0, 0.0
        self._texts: asyncio.Queue[protocol.SpeakMessage] = asyncio.Queue(limits.waiting_texts)
        self._microphone, self._camera = "listen", "off"
        self._newest_picture: bytes | np.ndarray | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._driving: asyncio.Task[None] | None = None

    @property
    def rate(self) -> int:
        """Sample rate in Hz of the sound that is sent."""
        return self._avatar.rate

    def describe(self) -> dict[str, Any]:
        """Return the state of the session for its HTTP resource."""
        return {
            "session": self.session, "state": self.state, "frame": self.frame, "late_frames": self.late_frames,
            "queued_seconds": round(self._avatar.queued_seconds, 3), "size": self.size,
            "seconds": round(self._clock() - self.opened_at, 3),
        }  # fmt: skip

    # --- From the client ---

    def on_text(self, text: str) -> None:
        """Apply one control message."""
        self._accept(len(text), lambda: self._apply(protocol.parse_message(text)))

    def on_message(self, fields: Any, size: int) -> None:
        """Apply a control message of so many bytes that came over HTTP; it counts towards the limits of the session.

        Raises:
            BadInput: it cannot be used, or too much came in.
        """
        if not (self._messages.take() and self._bytes.take(size)):
            raise BadInput(f"More than {self._limits.messages} messages or {self._limits.kilobytes} kB a second came "
                           "in: send them more slowly.")  # fmt: skip
        self._apply(protocol.validate_message(fields))

    def on_binary(self, data: bytes) -> None:
        """Apply one binary message."""

        def apply() -> None:
            kind, payload = protocol.parse_binary(data)
            if kind == protocol.ClientBinary.SPEECH:
                self._push(protocol.pcm_samples(payload), self.start.speech_rate)
            elif kind == protocol.ClientBinary.VOICE:
                self._hear(protocol.pcm_samples(payload), self.start.listen_rate)
            elif self._camera == "drive":
                self._take_picture(payload)

        self._accept(len(data), apply)

    def on_microphone(self, samples: np.ndarray, rate: int) -> None:
        """Take sound ``[n]`` int16 of a microphone track."""
        try:
            if self._microphone == "speech":
                self._push(samples, rate)
            elif self._microphone == "listen":
                self._hear(samples, rate)
        except BadInput as error:
            self._report(str(error))

    def on_camera(self, picture: np.ndarray) -> None:
        """Take a picture ``[H, W, 3]`` uint8 RGB of a camera track."""
        if self._camera == "drive":
            self._take_picture(picture)

    def _accept(self, size: int, apply: Callable[[], None]) -> None:
        """Apply a message if it is within the limits and the session is open."""
        if self.closed_reason is not None:
            return
        if size > self._limits.message_kilobytes * 1000:
            self.close(f"A message of {size / 1000:.0f} kB is over {self._limits.message_kilobytes} kB.")
        elif not (self._messages.take() and self._bytes.take(size)):
            self.close(f"More than {self._limits.messages} messages or {self._limits.kilobytes} kB a second came in.")
        else:
            try:
                apply()
                self._errors_in_a_row = 0
            except BadInput as error:
                self._report(str(error))

    def _report(self, sentence: str) -> None:
        self._metrics.errors.inc()
        self._errors_in_a_row += 1
        if self._errors_in_a_row >= MAX_ERRORS_IN_A_ROW:
            self.close(f"{MAX_ERRORS_IN_A_ROW} messages in a row could not be used.")
        else:
            self._send(protocol.ErrorMessage(message=strip_paths(sentence)))

    def _apply(self, message: protocol.ClientMessage | None) -> None:
        match message:
            case None:
                return
            case protocol.PingMessage():
                # A client that does nothing else is idle all the same.
                self._send(protocol.PongMessage(id=message.id))
                return
            case protocol.StartMessage():
                raise BadInput("The session has started already: open another one.")
            case protocol.CloseMessage():
                self.close("The client closed the session.")
            case protocol.SpeakMessage():
                self._queue_text(message)
            case protocol.FinishMessage() | protocol.AudioDoneEvent():
                self._avatar.finish()
            case protocol.InterruptMessage() | protocol.SpeechStartedEvent():
                self._interrupt()
            case protocol.MicrophoneMessage():
                self._microphone = message.use
            case protocol.CameraMessage():
                self._use_camera(message.use)
            case protocol.EmotionMessage():
                self._avatar.show_emotion(message.weights)
            case protocol.AudioDeltaEvent():
                self._push(protocol.decode_sound(message.delta), protocol.REALTIME_RATE)
            case protocol.AudioAppendEvent():
                self._hear(protocol.decode_sound(message.audio), protocol.REALTIME_RATE)
        self._last_activity = self._clock()

    def _push(self, samples: np.ndarray, rate: int) -> None:
        if not len(samples):
            return
        self._avatar.push(samples, rate)
        self._last_activity = now = self._clock()
        if self._pushed_at is None and self.state != "speaking":
            self._pushed_at = now

    def _hear(self, samples: np.ndarray, rate: int) -> None:
        if len(samples):
            self._avatar.hear(samples, rate)
            self._last_activity = self._clock()

    def _interrupt(self) -> None:
        while not self._texts.empty():
            self._texts.get_nowait()
        self._pushed_at = None
        self._avatar.interrupt()

    def _queue_text(self, message: protocol.SpeakMessage) -> None:
        if len(message.text) > self._limits.letters:
            raise BadInput(
                f"The text has {len(message.text)} characters, over {self._limits.letters}: send it in parts."
            )
        if message.voice not in (None, self._voice, *installed_voices()):
            # Other names could load any module, or spend the owner's money at a speech server.
            raise BadInput(f"There is no voice {message.voice!r} here: choose one that /live/config names.")
        try:
            self._texts.put_nowait(message)
        except asyncio.QueueFull:
            raise BadInput(f"{self._limits.waiting_texts} texts wait to be spoken already: send it later.") from None

    async def _speak_texts(self) -> None:
        while True:
            message = await self._texts.get()
            self._pushed_at = self._pushed_at or (self._clock() if self.state != "speaking" else None)
            try:
                await self._avatar.speak(message.text, message.voice or self._voice)
            except BadInput as error:
                if self.closed_reason is None:
                    self._report(str(error))

    # --- A webcam ---

    def _use_camera(self, use: str) -> None:
        self._camera = use
        if use == "off":
            self._newest_picture = None
            self._avatar.drive_with(None)

    def _take_picture(self, picture: bytes | np.ndarray) -> None:
        if isinstance(picture, bytes) and not picture.startswith(_JPEG_BEGIN):
            raise BadInput("The picture of the webcam is no JPEG: send image/jpeg.")
        self._last_activity = self._clock()
        self._newest_picture = picture
        if self._driving is None or self._driving.done():
            self._driving = self._spawn(self._drive())

    async def _drive(self) -> None:
        """Give the newest picture to the avatar, one at a time: tracking a face takes longer than a frame."""
        while self._newest_picture is not None and self.closed_reason is None:
            picture, self._newest_picture = self._newest_picture, None
            try:
                await asyncio.to_thread(self._drive_with, picture)
            except BadInput as error:
                self._report(str(error))

    def _drive_with(self, picture: bytes | np.ndarray) -> None:
        frame = decode_jpeg(picture, self._limits.picture_pixels) if isinstance(picture, bytes) else picture
        if self._camera == "drive":
            self._avatar.drive_with(frame)

    # --- To the client ---

    async def run(self, transport: LiveTransport, mime: str) -> str:
        """Carry the session until it ends, and return the reason.

        Args:
            transport: what carries it.
            mime: what its pictures are sent as.
        """
        self._transport = transport
        self._send(protocol.ReadyMessage(session=self.session, size=self.size, rate=self._avatar.rate, mime=mime))
        self._spawn(self._speak_texts())
        next_stats = self._clock() + STATS_SECONDS
        late_before = 0
        frames = self._avatar.frames()
        if self.closed_reason is not None:
            self._send(protocol.ClosedMessage(reason=self.closed_reason))
        try:
            while self.closed_reason is None:
                try:
                    picture, sound = await anext(frames)
                except StopAsyncIteration:
                    break
                now = self._clock()
                transport.send_frame(self.frame, picture, sound)
                late, self.late_frames = self._avatar.late_frames - late_before, self._avatar.late_frames
                late_before = self.late_frames
                self._count_frame(now, late)
                if self._avatar.state != self.state:
                    self.state = self._avatar.state
                    self._send(protocol.StateMessage(state=self.state, frame=self.frame))
                self.frame += 1
                if now >= next_stats:
                    next_stats += STATS_SECONDS
                    self._send_stats()
                self._end_if_too_long(now)
        except Exception as error:
            self.close(f"The drawing failed ({type(error).__name__}).")
            raise
        finally:
            self.close("The server ended the session.")
            for task in self._tasks:
                task.cancel()
            self._metrics.queued.inc(-self._queued_before)
            await self._avatar.aclose()
        assert self.closed_reason is not None
        return self.closed_reason

    def close(self, reason: str) -> None:
        """End the session; the first reason counts.

        Args:
            reason: one sentence for the client.
        """
        if self.closed_reason is None:
            self.closed_reason = reason
            self._send(protocol.ClosedMessage(reason=reason))
            self._avatar.close()

    def _send(self, message: Any) -> None:
        if self._transport is not None:
            self._transport.send_text(message.to_json())

    def _send_stats(self) -> None:
        queued = self._avatar.queued_seconds
        self._metrics.queued.inc(queued - self._queued_before)
        self._queued_before = queued
        self._send(
            protocol.StatsMessage(frame=self.frame, late_frames=self.late_frames, queued_seconds=round(queued, 3))
        )

    def _count_frame(self, now: float, late: int) -> None:
        self._metrics.frames.inc()
        self._metrics.draw.observe(self._avatar.drawing_seconds)
        if late:
            self._metrics.late_frames.inc(late)
        if self.frame == 0:
            self._metrics.first_frame.observe(now - self._requested_at)
        if self._pushed_at is not None and self._avatar.state == "speaking":
            self._metrics.push_to_frame.observe(now - self._pushed_at)
            self._pushed_at = None

    def _end_if_too_long(self, now: float) -> None:
        if now - self._last_activity > 60 * self._limits.idle_minutes and self.state != "speaking":
            self.close(f"Nothing came in for {self._limits.idle_minutes:g} minutes.")
        elif self._limits.session_minutes and now - self.opened_at > 60 * self._limits.session_minutes:
            self.close(f"The session has lasted {self._limits.session_minutes:g} minutes, the longest time here.")

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def decode_jpeg(data: bytes, max_pixels: int) -> np.ndarray:
    """Return the picture ``[H, W, 3]`` uint8 RGB of a JPEG that came from a client.

    Raises:
        BadInput: it is no JPEG, damaged, or larger than ``max_pixels``.
    """
    if not data.startswith(_JPEG_BEGIN):
        raise BadInput("The picture of the webcam is no JPEG: send image/jpeg.")
    width, height = jpeg_size(data)
    if width * height > max_pixels:
        raise BadInput(f"The picture has {width}x{height} px, over {max_pixels / 1e6:.1f} megapixels: send it smaller.")
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise BadInput("The picture of the webcam is damaged.")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Return width and height that the header of a JPEG states, before anything is decoded.

    Raises:
        BadInput: the header is damaged.
    """
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in _FRAME_MARKERS:
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    raise BadInput("The picture of the webcam is damaged.")
