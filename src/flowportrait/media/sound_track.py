"""The sound of a video, with its own rate and channels.

Either way the track keeps pace with the pictures while they are written, and is cut or padded with silence at their
end.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np

from flowportrait.media.audio import Sound, iter_sound, to_mono
from flowportrait.media.containers import main_sound_stream, open_media, start_time_of
from flowportrait.media.formats import OutputFormat

_RATES = {
    "aac": (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000),
    "libopus": (48000,),
}
"""Sample rates of the encoders; Opus plays at 48 kHz whatever the rate of its input."""
_LAYOUTS = {
    "aac": ("mono", "stereo", "3.0", "4.0", "quad", "5.0", "5.1"),
    "libopus": ("mono", "stereo", "3.0", "quad", "5.0", "5.1", "6.1", "7.1"),
}
_FALLBACK_LAYOUTS = {"5.0(side)": "5.0", "5.1(side)": "5.1", "7.1": "5.1", "6.1": "5.1", "quad(side)": "quad"}
"""The layout that replaces one which an encoder does not accept; any other is replaced by stereo."""
_BIT_RATE, _MONO_BIT_RATE = 96_000, 128_000
"""Bits per second and channel."""
_LATE, _SHORT, _GAP = 0.002, 0.041, 0.03
"""Seconds by which a copied track may begin after the picture, end before it (the last frame is mostly half heard), and
pause between two packets.
"""


class SoundTrack(Protocol):
    """The audio stream of a container that is being written."""

    def write_until(self, seconds: Fraction) -> None:
        """Write the sound up to this time of the video, in seconds."""

    def close(self, seconds: Fraction) -> None:
        """Write the rest of a video that lasts ``seconds``, with silence where the sound is shorter."""


def add_sound_track(
    container: Any, form: OutputFormat, sound: Path | Sound, seconds: float | None
) -> SoundTrack | None:
    """Add the stream of ``sound`` to a container and return its track; None where the format has no sound.

    Args:
        container: an open ``av`` output container into which nothing was muxed yet.
        form: its format.
        sound: a file, whose packets are copied where that is possible, or samples.
        seconds: the length of the video, where that is known: packets are copied only then.

    Raises:
        BadInput: the file cannot be read.
    """
    if form.audio_codec is None:
        return None
    if isinstance(sound, Path) and seconds is not None and can_copy_sound(sound, form, seconds):
        return CopiedSoundTrack(container, sound)
    pieces = iter([sound]) if isinstance(sound, Sound) else iter_sound(sound)
    first = next(pieces)
    blocks = (piece.samples for piece in chain([first], pieces))
    return EncodedSoundTrack(container, form.audio_codec, first.rate, first.layout, blocks)


class EncodedSoundTrack:
    """A sound track that encodes samples to AAC or Opus."""

    def __init__(
        self, container: Any, codec: str, rate: int, layout: str, blocks: Iterator[np.ndarray] | None = None
    ) -> None:
        """Add the stream to a container.

        Args:
            container: an open ``av`` output container.
            codec: ``aac`` or ``libopus``.
            rate: of the samples in Hz; the stream gets the same rate where the codec supports it.
            layout: FFmpeg's name of the channels.
            blocks: samples ``[C, n]`` float for ``write_until``.
        """
        self._container, self._rate, self._layout = container, rate, av.AudioLayout(layout)
        self._blocks = blocks or iter(())
        self._pending = np.zeros((self._layout.nb_channels, 0), np.float32)
        self.written = 0
        target = layout if layout in _LAYOUTS[codec] else _FALLBACK_LAYOUTS.get(layout, "stereo")
        self._is_mixed = "channels" in layout
        if self._is_mixed:
            # The file does not name its channels.
            target, self._source = "mono", "mono"
        else:
            self._source = layout
        channels = av.AudioLayout(target).nb_channels
        stream_rate = next((known for known in _RATES[codec] if known >= rate), _RATES[codec][-1])
        # A frame of AAC holds at most 6144 bits a channel.
        bit_rate = min(_MONO_BIT_RATE if channels == 1 else _BIT_RATE * channels, 6 * stream_rate * channels)
        self._stream = container.add_stream(codec, rate=stream_rate, layout=target, bit_rate=bit_rate)

    def write_until(self, seconds: Fraction) -> None:
        """Write the sound up to this time of the video; see ``SoundTrack``."""
        self.write(self._take(round(seconds * self._rate) - self.written))

    def close(self, seconds: Fraction | None = None) -> None:
        """Write the rest as ``SoundTrack.close`` does; None means that the samples written so far are all."""
        if seconds is not None:
            self.write_until(seconds)
        self._container.mux(self._stream.encode())

    def write(self, samples: np.ndarray) -> None:
        """Encode samples ``[C, n]`` float; non-finite ones become silence, louder ones than full scale are clipped."""
        if not samples.shape[1]:
            return
        block = np.nan_to_num(samples.T, posinf=0.0, neginf=0.0).astype(np.float32, copy=False).clip(-1.0, 1.0)
        if self._is_mixed:
            block = to_mono(block, self._layout)[:, None]
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(block).reshape(1, -1), format="flt", layout=self._source
        )
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self.written, Fraction(1, self._rate)
        self._container.mux(self._stream.encode(frame))
        self.written += samples.shape[1]

    def _take(self, count: int) -> np.ndarray:
        """Return the next samples ``[C, count]``, followed by silence after the last."""
        pieces, missing = [], count
        while missing > 0:
            if not self._pending.shape[1]:
                block = next(self._blocks, None)
                if block is None:
                    pieces.append(np.zeros((len(self._pending), missing), np.float32))
                    break
                self._pending = block
            pieces.append(self._pending[:, :missing])
            self._pending = self._pending[:, pieces[-1].shape[1] :]
            missing -= pieces[-1].shape[1]
        return np.concatenate(pieces, axis=1) if pieces else self._pending[:, :0]


class CopiedSoundTrack:
    """A sound track that copies a file's packets unchanged."""

    def __init__(self, container: Any, path: Path) -> None:
        """Add the stream to a container; ``can_copy_sound`` tells whether this is possible."""
        self._container, self._source = container, open_media(path)
        stream: Any = main_sound_stream(self._source)
        self._start = stream.start_time or 0
        self._stream = container.add_stream_from_template(stream)
        self._packets = (packet for packet in self._source.demux(stream) if packet.size)
        self._next: Any = next(self._packets, None)

    def write_until(self, seconds: Fraction) -> None:
        """Write the packets that end by then; see ``SoundTrack``."""
        while self._next is not None and self._place(self._next.pts + self._next.duration) <= seconds:
            self._write_next()

    def close(self, seconds: Fraction) -> None:
        """Write the rest as ``SoundTrack.close`` does, but shorten the last packet to the end and add no silence."""
        self.write_until(seconds)
        if self._next is not None and self._place(self._next.pts) < seconds:
            self._next.duration = int(seconds / self._next.time_base) + self._start - self._next.pts
            self._write_next()
        self._source.close()

    def _place(self, pts: int) -> Fraction:
        return (pts - self._start) * self._next.time_base

    def _write_next(self) -> None:
        packet, self._next = self._next, next(self._packets, None)
        # Packets that a decoder drops at the beginning get times before zero.
        packet.pts -= self._start
        packet.dts = packet.pts
        packet.stream = self._stream
        self._container.mux(packet)


def can_copy_sound(path: Path, form: OutputFormat, seconds: float) -> bool:
    """Return whether a file's packets can be the sound of a video of ``seconds``: nothing to delay, pad or convert."""
    with open_media(path) as source:
        stream = main_sound_stream(source)
        if stream is None or stream.codec_context.codec.canonical_name not in form.copied or not stream.time_base:
            return False
        start = stream.start_time or 0
        if abs(float(start * stream.time_base) - start_time_of(source)) > _LATE:
            return False
        end, kind = None, None
        for packet in source.demux(stream):
            if not packet.size:
                continue
            if packet.pts is None or packet.has_sidedata("new_extradata"):
                return False
            if end is not None and abs(float((packet.pts - end) * stream.time_base)) > _GAP:
                # The samples that the generator gets have no such gap.
                return False
            if kind is not None and kind != _frame_kind(stream, packet):
                return False
            kind, end = _frame_kind(stream, packet), packet.pts + (packet.duration or 0)
    return end is not None and float((end - start) * stream.time_base) > seconds - _SHORT


def _frame_kind(stream: Any, packet: Any) -> tuple[int, ...]:
    """Return what has to be the same in all packets of a track: rate and channels, where packets carry them.

    They do in MPEG audio and in AAC without a container, from joined files for example.
    """
    name = stream.codec_context.codec.canonical_name
    if name == "mp3":
        _, version, rate, mode = bytes(packet)[:4]
        return version & 0x1E, rate & 0x0C, int(mode >= 0xC0)
    if name == "aac" and not stream.codec_context.extradata:
        _, _, rate, channels = bytes(packet)[:4]
        return rate, channels & 0xC0
    return ()
