"""The two media tracks that leave over WebRTC: pictures as H.264 or VP8, sound as Opus, both on one media clock.

    add(index, picture) ─► at most 3 waiting ─► PictureEncoder (a thread) ─► av.Packet, pts = index · 3600   at 90 kHz
    add(index, sound)   ─► at most 2 s waiting ─► Opus, 40 ms (a thread) ─► av.Packet, pts = index · 1920   at 48 kHz

The tracks give ``aiortc`` packets that are encoded already: its own encoders cost two to six times the processor time
of these settings, give both Opus packets of a frame one timestamp, and start a new encoder, with a large key frame,
whenever the bit rate changes by a tenth. One Opus packet a frame, because a receiver takes two that come together for
an unsteady network, and delays the sound for it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import Executor
from fractions import Fraction

import av
import cv2
import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av.video.frame import PictureType

from flowportrait.live.session import FPS
from flowportrait.live.sound import SampleQueue, StreamResampler

VIDEO_CLOCK, AUDIO_CLOCK = 90_000, 48_000
"""Units a second of the timestamps of pictures and of sound."""
MAX_WAITING_PICTURES = 3
"""Pictures that wait for the encoder; beyond them the oldest is dropped."""
MAX_WAITING_SOUND = 2 * FPS
"""Frames of sound that wait for the encoder, 2 s; nothing is dropped before that."""
MIN_BITRATE = 250_000
"""Bits a second to which a slow network may push the pictures."""
_OPUS_SAMPLES = 1920
_OPUS_BITRATE = 48_000
_H264_QUALITY = 20
"""Constant rate factor: about 45 dB and 0.5 Mbit/s for a talking head of 384 px."""
_BITRATE_STEP = 0.25
"""Relative change of the bit rate at which an encoder is replaced; the new one begins with a key frame."""
_MEASURE_SECONDS = 2.0
"""Seconds over which the bits that are sent are counted."""
_CONGESTED = 0.8
"""Share of the bits that were sent below which an estimate says that the network is too slow."""
_LITTLE_LOST, _MUCH_LOST = 0.02, 0.1
"""Shares of lost packets above which the limit does not rise, and above which it falls."""
_RECOVERY = 1.1
"""Factor by which the limit of the bit rate rises in ``_MEASURE_SECONDS`` on a network that is not too slow."""
_KEYFRAME_SECONDS = 600
"""Seconds between key frames that nobody asked for."""


class PictureEncoder:
    """Encodes pictures one by one as H.264 (constrained baseline) or VP8; every picture is returned at once."""

    def __init__(self, codec: str, bitrate: int) -> None:
        """Prepare an encoder.

        Args:
            codec: ``H264`` or ``VP8``.
            bitrate: bits a second.
        """
        self.codec, self.bitrate = codec, bitrate
        self._context: av.VideoCodecContext | None = None
        self._opened_bitrate = bitrate

    def encode(self, picture: np.ndarray, pts: int, key: bool) -> av.Packet | None:
        """Return one encoded picture.

        Args:
            picture: RGB ``[H, W, 3]`` uint8; an odd last row or column is left out.
            pts: timestamp in units of 1/90000 s.
            key: make a key frame.
        """
        height, width = picture.shape[0] & ~1, picture.shape[1] & ~1
        # OpenCV converts with the matrix of BT.601 to the limited range, several times as fast as swscale.
        planes = cv2.cvtColor(np.ascontiguousarray(picture[:height, :width]), cv2.COLOR_RGB2YUV_I420)
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.pts, frame.time_base = pts, Fraction(1, VIDEO_CLOCK)
        frame.pict_type = PictureType.I if key else PictureType.NONE
        if (
            self._context is None
            or (self._context.width, self._context.height) != (width, height)
            or abs(self.bitrate / self._opened_bitrate - 1) > _BITRATE_STEP
        ):
            self._context, self._opened_bitrate = self._open(width, height), self.bitrate
        data = b"".join(bytes(packet) for packet in self._context.encode(frame))
        if not data:
            return None
        packet = av.Packet(data)
        packet.pts, packet.time_base = pts, frame.time_base
        return packet

    def _open(self, width: int, height: int) -> av.VideoCodecContext:
        context = av.CodecContext.create("libx264" if self.codec == "H264" else "libvpx", "w")
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base, context.framerate = Fraction(1, VIDEO_CLOCK), Fraction(FPS, 1)
        context.gop_size, context.thread_count = FPS * _KEYFRAME_SECONDS, 1
        # 6 = BT.601 (SMPTE 170M), 1 = limited range: what OpenCV made, so that no browser has to guess.
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 6, 6, 6, 1
        if self.codec == "H264":
            # The bits go where they are seen, and an idle face costs few; the network limits the rest.
            context.options = {
                "preset": "superfast", "tune": "zerolatency", "profile": "baseline", "level": "3.1",
                "crf": str(_H264_QUALITY), "maxrate": str(self.bitrate), "bufsize": str(self.bitrate // 2),
            }  # fmt: skip
        else:
            context.bit_rate, context.qmin, context.qmax = self.bitrate, 2, 56
            context.options = {
                "deadline": "realtime", "cpu-used": "-12", "lag-in-frames": "0", "static-thresh": "1",
                "minrate": str(self.bitrate), "maxrate": str(self.bitrate), "bufsize": str(self.bitrate),
                "undershoot-pct": "100", "overshoot-pct": "15",
            }  # fmt: skip
        return context


class _SentTrack(MediaStreamTrack):
    """A track whose packets are made from what waits in a queue, in a thread."""

    def __init__(self, executor: Executor, limit: int) -> None:
        super().__init__()
        self._encoders, self._limit = executor, limit
        self._queued: deque[tuple[int, np.ndarray]] = deque()
        self._came = asyncio.Event()
        self.started = False
        """Whether the connection asks for packets."""
        self.last_pts: int | None = None
        """Timestamp of the packet that was given away last."""
        self.dropped = 0
        """Number of items that were left out because the connection or the encoder was behind."""

    def add(self, index: int, item: np.ndarray) -> None:
        """Add what belongs to a frame; before the connection stands, only the newest is kept."""
        self._queued.append((index, item))
        while len(self._queued) > (self._limit if self.started else 1):
            self._queued.popleft()
            self.dropped += self.started
        self._came.set()

    def stop(self) -> None:
        """End the track; who waits for a packet is woken."""
        super().stop()
        self._queued.clear()
        self._came.set()

    async def _next(self) -> tuple[int, np.ndarray]:
        self.started = True
        while not self._queued:
            if self.readyState != "live":
                raise MediaStreamError
            self._came.clear()
            await self._came.wait()
        return self._queued.popleft()


class PictureTrack(_SentTrack):
    """Pictures with their timestamps, encoded; the oldest is dropped when the encoder is behind."""

    kind = "video"

    def __init__(self, executor: Executor, max_bitrate: int) -> None:
        super().__init__(executor, MAX_WAITING_PICTURES)
        self.max_bitrate, self.key_wanted = max_bitrate, False
        self.sent = self.sent_bytes = 0
        self._measured_since, self._measured_bytes = time.monotonic(), 0
        self._estimate: int | None = None
        self._lost = 0.0
        self._encoder = PictureEncoder("VP8", max_bitrate)

    @property
    def codec(self) -> str:
        """Name of the codec, ``H264`` or ``VP8``."""
        return self._encoder.codec

    def choose_codec(self, codec: str) -> None:
        """Encode with the codec that both sides agreed on; called before the first picture is asked for."""
        self._encoder = PictureEncoder(codec, self.bitrate)

    @property
    def bitrate(self) -> int:
        """Bits a second that are aimed at."""
        return self._encoder.bitrate

    def limit_bitrate(self, estimate: int | None = None, lost: float = 0.0) -> None:
        """Follow a network that is too slow for what is sent; the limit rises slowly afterwards.

        A receiver estimates from what it gets: up to 1.5 times as much while all is well, .85 times when packets come
        later than they should. An idle face needs little, and a busy processor delays packets too, so an estimate is a
        limit only if less arrives than is sent.

        Args:
            estimate: bits a second that the receiver thinks the network carries, if it said so.
            lost: share of the packets that were lost since the report before.
        """
        self._estimate, self._lost = estimate or self._estimate, max(lost, self._lost)
        now = time.monotonic()
        seconds = now - self._measured_since
        if seconds < _MEASURE_SECONDS or not self.sent:
            return
        rate = 8 * (self.sent_bytes - self._measured_bytes) / seconds
        wanted = self.bitrate * _RECOVERY
        if self._lost > _MUCH_LOST:
            wanted = min(self.bitrate, rate) * (1 - self._lost / 2)
        elif self._estimate is not None and self._estimate < _CONGESTED * rate:
            wanted = self._estimate
        elif self._lost > _LITTLE_LOST:
            wanted = self.bitrate
        self._encoder.bitrate = round(max(min(wanted, self.max_bitrate), min(MIN_BITRATE, self.max_bitrate)))
        self._measured_since, self._measured_bytes, self._estimate, self._lost = now, self.sent_bytes, None, 0.0

    async def recv(self) -> av.Packet:
        """Return the next encoded picture."""
        packet = None
        while packet is None:
            index, picture = await self._next()
            key, self.key_wanted = self.key_wanted, False
            packet = await asyncio.get_running_loop().run_in_executor(
                self._encoders, self._encoder.encode, picture, index * (VIDEO_CLOCK // FPS), key
            )
        if not self.sent:
            self._measured_since = time.monotonic()
        self.sent, self.sent_bytes, self.last_pts = self.sent + 1, self.sent_bytes + packet.size, packet.pts
        return packet


class OpusTrack(_SentTrack):
    """Sound in Opus packets of 40 ms with exact timestamps."""

    kind = "audio"

    def __init__(self, executor: Executor, rate: int) -> None:
        super().__init__(executor, MAX_WAITING_SOUND)
        self._rate, self._ready = rate, deque[av.Packet]()
        self._resampler, self._samples = StreamResampler(AUDIO_CLOCK), SampleQueue()
        self._next_index: int | None = None
        self._encoded = self._jump = 0
        self._context = av.CodecContext.create("libopus", "w")
        self._context.bit_rate, self._context.sample_rate = _OPUS_BITRATE, AUDIO_CLOCK
        self._context.format, self._context.layout = "s16", "mono"
        self._context.time_base = Fraction(1, AUDIO_CLOCK)
        self._context.options = {"application": "voip", "frame_duration": "40"}

    async def recv(self) -> av.Packet:
        """Return the next packet."""
        while not self._ready:
            index, sound = await self._next()
            encoded = asyncio.get_running_loop().run_in_executor(self._encoders, self._encode, index, sound)
            self._ready.extend(await encoded)
        packet = self._ready.popleft()
        self.last_pts = packet.pts
        return packet

    def _encode(self, index: int, sound: np.ndarray) -> list[av.Packet]:
        if index != self._next_index:
            # The first frame, or one after frames that were dropped: the timestamps jump with it.
            self._samples, self._jump = SampleQueue(), index * (AUDIO_CLOCK // FPS) - self._encoded
        self._next_index = index + 1
        self._samples.add(self._resampler.push(np.asarray(sound, np.float32).reshape(-1), self._rate))
        packets = []
        while len(self._samples) >= _OPUS_SAMPLES:
            samples = np.round(self._samples.take(_OPUS_SAMPLES).clip(-1, 1) * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = AUDIO_CLOCK, self._encoded, Fraction(1, AUDIO_CLOCK)
            self._encoded += _OPUS_SAMPLES
            for packet in self._context.encode(frame):
                # The encoder has taken its own delay, 6.5 ms, off its timestamps: the decoded sound is in time.
                packet.pts += self._jump
                packets.append(packet)
        return packets
