"""What ``aiortc`` leaves open: exact clocks for the receiver, its feedback, and a limit of what is received.

    SenderReports   sender report of aiortc ─► rewritten: pictures and sound on one line of wall time and timestamps
                    receiver report, REMB, PLI of the client ─► losses, round-trip time, bit rate, key frame
    DecoderQueue    packets of the client ─► few frames that wait for the decoder

``aiortc`` reports the time at which the last packet of a frame was sent as the time of that frame. Pictures are sent
some 5 to 30 ms after their sound, because they take longer to encode: by such reports, the sound would be played that
much apart from its picture, by another amount at every report. Here both tracks report the same line: timestamp 0 of
both is one moment, and a second is a second.

``aiortc`` has no public interface for this, so methods of its objects are replaced in this module and nowhere else.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Any

from aiortc import RTCRtpReceiver, RTCRtpSender
from aiortc.clock import current_ntp_time
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RTP_HISTORY_SIZE,
    RtcpPsfbPacket,
    RtcpRrPacket,
    RtcpSrPacket,
    unpack_remb_fci,
)

MAX_UNDECODED = 25
"""Frames of a client's camera or microphone that may wait to be decoded."""
_NTP_SECOND = 1 << 32
_REMEMBERED_REPORTS = 16
_RESEND_SECONDS = 0.2
"""Seconds within which a lost packet is sent again only once."""


class MediaClock:
    """The wall time of timestamp 0, the same for all tracks of a connection."""

    def __init__(self) -> None:
        self._begin: int | None = None

    @property
    def began(self) -> bool:
        """Whether the media time is known."""
        return self._begin is not None

    def begin(self, seconds: float) -> None:
        """Set the media time in seconds of now; only the first call counts."""
        if self._begin is None:
            self._begin = current_ntp_time() - round(seconds * _NTP_SECOND)

    def seconds(self, ntp: int) -> float:
        """Return the media time in seconds at a wall time in units of NTP."""
        assert self._begin is not None
        return (ntp - self._begin) / _NTP_SECOND


class SenderReports:
    """Rewrites the sender reports of one track, and reads the reports of its receiver."""

    def __init__(
        self,
        sender: RTCRtpSender,
        clock: MediaClock,
        clock_rate: int,
        last_pts: Callable[[], int | None],
        on_key_frame: Callable[[], None] = lambda: None,
        on_network: Callable[[int | None, float], None] = lambda estimate, lost: None,
    ) -> None:
        """Attach to a sender.

        Args:
            sender: sends the track.
            clock: the clock of the connection.
            clock_rate: units of a timestamp a second.
            last_pts: returns the timestamp of the packet that was sent last.
            on_key_frame: called when the receiver cannot decode without a key frame.
            on_network: called with the bits a second that the network carries, as the receiver estimates them (None if
                it did not), and the share of the packets that were lost since the last call.
        """
        self._sender, self._clock, self._clock_rate, self._last_pts = sender, clock, clock_rate, last_pts
        self._on_key_frame, self._on_network = on_key_frame, on_network
        self.round_trip: float | None = None
        self.fraction_lost: float | None = None
        self.packets_lost: int | None = None
        self.jitter: float | None = None
        self._sent: dict[int, float] = {}
        self._send_rtcp, self._handle_rtcp = sender._send_rtcp, sender._handle_rtcp_packet
        sender._send_rtcp = self._send  # type: ignore[method-assign]
        sender._handle_rtcp_packet = self._handle  # type: ignore[method-assign]
        self._resent: dict[int, float] = {}
        self._retransmit = sender._retransmit
        sender._retransmit = self._resend  # type: ignore[method-assign]

    async def _send(self, packets: list[Any]) -> None:
        for packet in packets:
            if isinstance(packet, RtcpSrPacket) and not self._rewrite(packet):
                return
        await self._send_rtcp(packets)

    async def _resend(self, sequence_number: int) -> None:
        """Send a lost packet again, but not at every one of the requests that come while it is on its way."""
        now = time.monotonic()
        if now - self._resent.get(sequence_number, -_RESEND_SECONDS) < _RESEND_SECONDS:
            return
        self._resent.pop(sequence_number, None)  # its place in the order is now the last
        self._resent[sequence_number] = now
        while len(self._resent) > RTP_HISTORY_SIZE:
            del self._resent[next(iter(self._resent))]
        await self._retransmit(sequence_number)

    def _rewrite(self, packet: RtcpSrPacket) -> bool:
        info, pts = packet.sender_info, self._last_pts()
        if not info.packet_count or pts is None or not self._clock.began:
            return False  # nothing was sent yet, so there is no clock to report
        origin = info.rtp_timestamp - pts
        now = round(self._clock.seconds(info.ntp_timestamp) * self._clock_rate)
        info.rtp_timestamp = (origin + now) & 0xFFFFFFFF
        self._sent[(info.ntp_timestamp >> 16) & 0xFFFFFFFF] = time.monotonic()
        while len(self._sent) > _REMEMBERED_REPORTS:
            del self._sent[next(iter(self._sent))]
        return True

    async def _handle(self, packet: Any) -> None:
        if isinstance(packet, (RtcpRrPacket, RtcpSrPacket)):
            for report in packet.reports:
                if report.ssrc == self._sender._ssrc:
                    self._read(report)
        elif isinstance(packet, RtcpPsfbPacket):
            if packet.fmt in (RTCP_PSFB_PLI, RTCP_PSFB_FIR):
                self._on_key_frame()
            elif packet.fmt == RTCP_PSFB_APP:
                self._read_bitrate(packet.fci)
        await self._handle_rtcp(packet)

    def _read(self, report: Any) -> None:
        self.fraction_lost, self.packets_lost = report.fraction_lost / 256, report.packets_lost
        self._on_network(None, self.fraction_lost)
        self.jitter = report.jitter / self._clock_rate
        sent = self._sent.get(report.lsr)
        if sent is not None and report.dlsr:
            self.round_trip = max(0.0, time.monotonic() - sent - report.dlsr / 65536)

    def _read_bitrate(self, message: bytes) -> None:
        try:
            bitrate, streams = unpack_remb_fci(message)
        except ValueError:
            return  # application messages other than REMB
        if self._sender._ssrc in streams:
            self._on_network(bitrate, 0.0)


class DecoderQueue(queue.Queue[Any]):
    """What waits for the decoder of a client's camera or microphone: few frames, and none that nobody wants.

    The queue of ``aiortc`` has no limit: a client that sends more than the processor can decode would fill the memory.
    """

    def __init__(self, receiver: RTCRtpReceiver) -> None:
        """Attach to a receiver that has not begun to receive."""
        super().__init__()
        self._wanted, self.dropped = True, 0
        self._picture_lost = receiver._RTCRtpReceiver__decoder_error  # type: ignore[attr-defined]
        receiver._RTCRtpReceiver__decoder_queue = self  # type: ignore[attr-defined]

    def receive(self, wanted: bool) -> None:
        """Decode what comes, or drop it, which costs next to nothing."""
        if wanted and not self._wanted:
            self._picture_lost.set()  # makes the receiver ask for a key frame
        self._wanted = wanted

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add a frame, or None as the end; frames beyond ``MAX_UNDECODED`` are dropped."""
        if item is not None and not (self._wanted and self.qsize() < MAX_UNDECODED):
            self.dropped += 1
            if self._wanted:
                self._picture_lost.set()
            return
        if item is None:
            with self.mutex:
                self.queue.clear()  # aiortc waits for the decoder, in the event loop
        super().put(item, block, timeout)
