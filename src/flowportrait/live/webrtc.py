"""One WebRTC connection: pictures, sound and messages to a browser, its microphone, camera and messages back.

    offer ─► WebRTCPeer.answer ─► answer_sdp
    send_frame(index, picture, sound) ─► PictureTrack, OpusTrack (one MediaStream) ─► the browser
    send_text ─► data channel "flowportrait" ─► on_text, on_binary
    on_microphone, on_camera, on_closed ◄─ the browser

Nothing here knows avatars. All methods are called in the event loop in which the peer was made, as are the callbacks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import av
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCDataChannel,
    RTCIceCandidate,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from aiortc.sdp import SessionDescription

from flowportrait.errors import BadInput
from flowportrait.live.session import FPS
from flowportrait.live.webrtc_offer import CODECS, IceServer, ice_configuration, read_offer
from flowportrait.live.webrtc_rtcp import DecoderQueue, MediaClock, SenderReports
from flowportrait.live.webrtc_tracks import AUDIO_CLOCK, VIDEO_CLOCK, OpusTrack, PictureTrack

__all__ = ["IceServer", "WebRTCPeer"]

log = logging.getLogger(__name__)

CHANNEL_LABEL = "flowportrait"
"""Label of the data channel; channels with any other are closed."""
MAX_BITRATE = 1_500_000
"""Bits a second of the pictures, enough for a talking head of 512 px."""
MAX_MESSAGE = 256 * 1024
"""Bytes of a message in either direction."""
MAX_QUEUED_MESSAGES = 64
"""Messages that wait until the data channel is open; beyond them the oldest is dropped."""
MAX_UNSENT_BYTES = 1024 * 1024
"""Bytes of messages that a client may leave unread; beyond them messages are dropped."""
CONNECT_SECONDS = 15.0
"""Seconds after the answer within which a client must connect."""
CAMERA_SIDE = 640
"""Longest side in pixels of the camera's pictures that are handed on."""
CAMERA_KBIT = 800
"""Thousands of bits a second that the answer allows the camera of a client."""
_CLOSE_SECONDS = 5.0


class WebRTCPeer:
    """A connection to one client; made by ``answer``."""

    def __init__(
        self,
        rate: int,
        ice_servers: Sequence[IceServer],
        max_bitrate: int,
        on_text: Callable[[str], None],
        on_binary: Callable[[bytes], None],
        on_microphone: Callable[[np.ndarray, int], None],
        on_camera: Callable[[np.ndarray], None],
        on_closed: Callable[[str], None],
    ) -> None:
        self.answer_sdp = ""
        self._rate, self._max_bitrate = rate, max_bitrate
        self._on_text, self._on_binary = on_text, on_binary
        self._on_microphone, self._on_camera, self._on_closed = on_microphone, on_camera, on_closed
        self._connection = RTCPeerConnection(ice_configuration(ice_servers))
        self._executor = ThreadPoolExecutor(2, "webrtc-encoder")
        self._clock = MediaClock()
        self._pictures: PictureTrack | None = None
        self._sound: OpusTrack | None = None
        self._reports: dict[str, SenderReports] = {}
        self._undecoded: dict[str, DecoderQueue] = {}
        self._channel: RTCDataChannel | None = None
        self._unsent: deque[str] = deque(maxlen=MAX_QUEUED_MESSAGES)
        self._dropped_messages = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def answer(
        cls,
        offer_sdp: str,
        *,
        rate: int,
        ice_servers: Sequence[IceServer] = (),
        max_bitrate: int = MAX_BITRATE,
        on_text: Callable[[str], None],
        on_binary: Callable[[bytes], None],
        on_microphone: Callable[[np.ndarray, int], None],
        on_camera: Callable[[np.ndarray], None],
        on_closed: Callable[[str], None],
    ) -> WebRTCPeer:
        """Return a peer whose ``answer_sdp`` answers an offer; the connection is established afterwards.

        Args:
            offer_sdp: the offer of the client, with or without its candidates.
            rate: sample rate in Hz of the sound of ``send_frame``.
            ice_servers: STUN and TURN servers of this side; none are needed on one machine or in one network.
            max_bitrate: bits a second of the pictures at most.
            on_text: called with every text message of the client.
            on_binary: called with every binary message of the client.
            on_microphone: called with int16 mono samples ``[n]`` of the client's microphone and their rate in Hz.
            on_camera: called with RGB pictures ``[H, W, 3]`` of the client's camera, the newest only.
            on_closed: called once, with the reason as a sentence, when the connection has ended by other means than
                ``close``.

        Raises:
            BadInput: the offer cannot be answered; see ``read_offer``.
        """
        offer = read_offer(offer_sdp)
        peer = cls(
            rate, ice_servers, max_bitrate, on_text, on_binary, on_microphone, on_camera, on_closed
        )  # fmt: skip
        try:
            await peer._answer(offer, offer_sdp)
        except BaseException as error:
            await peer.close()
            if isinstance(error, Exception):
                raise BadInput(f"The offer cannot be answered ({error}): send an offer as browsers make it.") from error
            raise
        return peer

    async def _answer(self, offer: SessionDescription, sdp: str) -> None:
        connection = self._connection
        connection.on("track", self._receive_track)
        connection.on("datachannel", self._open_channel)
        connection.on("connectionstatechange", self._check_state)
        self._pictures = PictureTrack(self._executor, self._max_bitrate)
        self._sound = OpusTrack(self._executor, self._rate)
        for track in (self._pictures, self._sound):
            names, clock_rate = (CODECS, VIDEO_CLOCK) if track is self._pictures else (("opus",), AUDIO_CLOCK)
            transceiver = connection.addTransceiver(track)
            possible = RTCRtpSender.getCapabilities(track.kind).codecs
            transceiver.setCodecPreferences(
                [codec for name in (*names, "rtx") for codec in possible if codec.name == name]
            )
            self._undecoded[track.kind] = DecoderQueue(transceiver.receiver)
            self._reports[track.kind] = SenderReports(
                transceiver.sender, self._clock, clock_rate, lambda track=track: track.last_pts,  # type: ignore[misc]
                self._send_key_frame, self._pictures.limit_bitrate,
            )  # fmt: skip
        # Candidates are added afterwards: resolving the name of one (.local) can take a second.
        lines = [line for line in sdp.splitlines() if not line.startswith(("a=candidate:", "a=end-of-candidates"))]
        await connection.setRemoteDescription(RTCSessionDescription("\r\n".join(lines) + "\r\n", "offer"))
        await connection.setLocalDescription(await connection.createAnswer())
        answer = connection.localDescription.sdp
        self._pictures.choose_codec(_first_video_codec(answer))
        self.answer_sdp = _limit_camera(answer)
        for media in offer.media:
            for candidate in media.ice_candidates:
                candidate.sdpMid = media.rtp.muxId
                self._start(self._add_candidate(candidate))
        if self._connection.connectionState != "connected":
            self._timer = asyncio.get_running_loop().call_later(
                CONNECT_SECONDS, self._end, f"The client did not connect within {CONNECT_SECONDS:g} s."
            )

    async def _add_candidate(self, candidate: RTCIceCandidate) -> None:
        try:
            await self._connection.addIceCandidate(candidate)
        except Exception as error:  # an address of the client that cannot be used; the others may do
            log.info("candidate %s %s: %s", candidate.protocol, candidate.ip, error)

    # --- Output ---

    def send_frame(self, index: int, picture: np.ndarray, sound: np.ndarray) -> None:
        """Send what belongs to one frame; it returns at once.

        Args:
            index: number of the frame, of which its time follows: ``index`` / 25 s.
            picture: RGB ``[H, W, 3]`` uint8; it is not copied and must not be changed afterwards.
            sound: ``[1, rate / 25]`` or ``[rate / 25]`` float32.
        """
        if self._ended or self._pictures is None or self._sound is None:
            return
        if self._connection.connectionState == "connected":
            self._clock.begin(index / FPS)
        self._sound.add(index, sound)
        self._pictures.add(index, picture)

    def send_text(self, message: str) -> None:
        """Send a text message, or queue it until the client has opened its data channel."""
        if self._ended:
            return
        if self._channel is None:
            self._dropped_messages += len(self._unsent) == MAX_QUEUED_MESSAGES
            self._unsent.append(message)
        elif self._channel.readyState == "open" and self._channel.bufferedAmount < MAX_UNSENT_BYTES:
            self._channel.send(message)
        else:
            self._dropped_messages += 1

    @property
    def connected(self) -> bool:
        """Whether the connection stands."""
        return not self._ended and self._connection.connectionState == "connected"

    def stats(self) -> dict[str, Any]:
        """Return figures of the connection; those that are not known yet are None."""
        pictures, sound, reports = self._pictures, self._sound, self._reports
        video = reports.get("video")
        return {
            "connected": self.connected,
            "codec": pictures and pictures.codec,
            "bitrate": pictures and pictures.bitrate,
            "pictures_sent": pictures.sent if pictures else 0,
            "picture_bytes": pictures.sent_bytes if pictures else 0,
            "pictures_dropped": pictures.dropped if pictures else 0,
            "sound_frames_dropped": sound.dropped if sound else 0,
            "messages_dropped": self._dropped_messages,
            "round_trip_seconds": video and video.round_trip,
            "fraction_lost": video and video.fraction_lost,
            "packets_lost": video and video.packets_lost,
            "received_frames_dropped": sum(one.dropped for one in self._undecoded.values()),
        }

    def _send_key_frame(self) -> None:
        if self._pictures:
            self._pictures.key_wanted = True

    # --- Input ---

    def receive_microphone(self, wanted: bool) -> None:
        """Decode the client's microphone for ``on_microphone``, as at the beginning, or not, which costs nothing."""
        self._undecoded["audio"].receive(wanted)

    def receive_camera(self, wanted: bool) -> None:
        """Decode the client's camera for ``on_camera``, as at the beginning, or not, which costs nothing."""
        self._undecoded["video"].receive(wanted)

    def _open_channel(self, channel: RTCDataChannel) -> None:
        if channel.label != CHANNEL_LABEL or self._channel is not None:
            channel.close()
            return
        self._channel = channel
        channel.on("message", self._receive_message)
        while self._unsent:
            channel.send(self._unsent.popleft())

    def _receive_message(self, message: str | bytes) -> None:
        if len(message) > MAX_MESSAGE:
            self._end(f"The client sent a message of {len(message)} bytes, and {MAX_MESSAGE} are possible.")
        elif isinstance(message, str):
            self._call(self._on_text, message)
        else:
            self._call(self._on_binary, message)

    def _receive_track(self, track: MediaStreamTrack) -> None:
        self._start(self._receive_sound(track) if track.kind == "audio" else self._receive_pictures(track))

    async def _receive_sound(self, track: MediaStreamTrack) -> None:
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            assert isinstance(frame, av.AudioFrame)
            channels = len(frame.layout.channels)
            samples = frame.to_ndarray().reshape(-1, channels)  # s16, interleaved
            self._call(self._on_microphone, samples.astype(np.int32).mean(1).astype(np.int16), frame.sample_rate)

    async def _receive_pictures(self, track: MediaStreamTrack) -> None:
        newest: list[av.VideoFrame] = []
        came = asyncio.Event()

        async def hand_on() -> None:
            while True:
                await came.wait()
                came.clear()
                picture = await asyncio.get_running_loop().run_in_executor(self._executor, _to_rgb, newest.pop())
                self._call(self._on_camera, picture)

        consumer = self._start(hand_on())
        try:
            while True:
                frame = await track.recv()
                assert isinstance(frame, av.VideoFrame)
                newest[:] = [frame]
                came.set()
        except MediaStreamError:
            return
        finally:
            consumer.cancel()

    # --- The end ---

    def _check_state(self) -> None:
        state = self._connection.connectionState
        if state == "connected" and self._timer:
            self._timer.cancel()
        elif state in ("failed", "closed"):
            self._end("The client ended the connection, or cannot be reached any more.")

    def _end(self, reason: str) -> None:
        if not self._ended:
            self._ended = True
            self._call(self._on_closed, reason)
            self._close_task()

    def _close_task(self) -> asyncio.Task[None]:
        if self._closing is None:
            self._ended = True
            self._closing = asyncio.get_running_loop().create_task(self._close())
        return self._closing

    async def close(self) -> None:
        """End the connection and release its sockets, threads and tasks; ``on_closed`` is not called."""
        await asyncio.shield(self._close_task())

    async def _close(self) -> None:
        if self._timer:
            self._timer.cancel()
        for track in (self._pictures, self._sound):
            if track is not None:
                track.stop()
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.wait_for(self._connection.close(), _CLOSE_SECONDS)
        except Exception as error:
            log.warning("a connection did not close: %r", error)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _call(self, callback: Callable[..., None], *arguments: Any) -> None:
        try:
            callback(*arguments)
        except Exception:  # the mistake of one callback must not end the reading of the connection
            log.exception("a callback failed")


def _first_video_codec(sdp: str) -> str:
    return next(media.rtp.codecs[0].name for media in SessionDescription.parse(sdp).media if media.kind == "video")


def _limit_camera(sdp: str) -> str:
    """Return an answer that tells the client how many bits a second its camera may send."""
    parts = sdp.split("m=video", 1)
    head, _, rest = parts[1].partition("\r\nc=")
    line, _, tail = rest.partition("\r\n")
    return f"{parts[0]}m=video{head}\r\nc={line}\r\nb=AS:{CAMERA_KBIT}\r\n{tail}"


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
    scale = min(1.0, CAMERA_SIDE / max(frame.width, frame.height))
    width, height = round(frame.width * scale), round(frame.height * scale)
    return frame.reformat(width, height, "rgb24").to_ndarray()
