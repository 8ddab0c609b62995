"""The sound of a video, with its own rate and channels.

    a file whose packets the container takes, as long as the pictures  ─►  copied, bit for bit
    anything else                                                      ─►  AAC or Opus at 96 kbit/s a channel or more

Either way the track keeps pace with the pictures while they are written, and is cut or padded with silence where they
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
from flowportrait.media.containers import open_media, origin, sound_stream
from flowportrait.media.formats import OutputFormat

_RATES = {
    "aac": (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000),
    "libopus": (48000,),
}
"""Sample rates of the encoders; Opus plays at 48 kHz whatever it was made from."""
_LAYOUTS = {
    "aac": ("mono", "stereo", "3.0", "4.0", "quad", "5.0", "5.1"),
    "libopus": ("mono", "stereo", "3.0", "quad", "5.0", "5.1", "6.1", "7.1"),
}
_SAME = {"5.0(side)": "5.0", "5.1(side)": "5.1", "7.1": "5.1", "6.1": "5.1", "quad(side)": "quad"}
"""What a layout becomes that an encoder does not take; any other becomes stereo."""
_BIT_RATE, _MONO_BIT_RATE = 96_000, 128_000
"""Bits per second and channel."""
_LATE, _SHORT, _GAP = 0.002, 0.041, 0.03
"""Seconds that a copied track may begin after the picture, end before it (the last frame is mostly half heard), and
pause between two packets."""


class SoundTrack(Protocol):
    """One audio stream of an open container."""

    def write_until(self, seconds: Fraction) -> None:
        """Write what is heard up to this moment of the video."""

    def close(self, seconds: Fraction) -> None:
        """Write the rest of a video that lasts so long, and silence where there is no more sound."""


def sound_track(container: Any, form: OutputFormat, sound: Path | Sound, seconds: float | None) -> SoundTrack | None:
    """Add the stream of ``sound`` to a container into which nothing was muxed yet; None where the format is silent.

    Args:
        container: an open ``av`` output container.
        form: its format.
        sound: a file, whose packets are copied where that is possible, or samples.
        seconds: how long the video will be, where that is known: only then packets are copied.

    Raises:
        BadInput: the file cannot be read.
    """
    if form.audio_codec is None:
        return None
    if isinstance(sound, Path) and seconds is not None and copyable(sound, form, seconds):
        return CopiedSound(container, sound)
    pieces = iter([sound]) if isinstance(sound, Sound) else iter_sound(sound)
    first = next(pieces)
    blocks = (piece.samples for piece in chain([first], pieces))
    return EncodedSound(container, form.audio_codec, first.rate, first.layout, blocks)


class EncodedSound:
    """Samples to AAC or Opus."""

    def __init__(
        self, container: Any, codec: str, rate: int, layout: str, blocks: Iterator[np.ndarray] | None = None
    ) -> None:
        """Add the stream.

        Args:
            container: an open ``av`` output container.
            codec: ``aac`` or ``libopus``.
            rate: of the samples in Hz; it becomes the stream's where the codec knows it.
            layout: FFmpeg's name of the channels.
            blocks: samples ``[C, n]`` float for ``write_until``.
        """
        self._container, self._rate, self._layout = container, rate, av.AudioLayout(layout)
        self._blocks = blocks or iter(())
        self._rest = np.zeros((self._layout.nb_channels, 0), np.float32)
        self.written = 0
        target = layout if layout in _LAYOUTS[codec] else _SAME.get(layout, "stereo")
        self._mixed = "channels" in layout
        if self._mixed:
            # Channels that nobody named.
            target, self._source = "mono", "mono"
        else:
            self._source = layout
        channels = av.AudioLayout(target).nb_channels
        played = next((known for known in _RATES[codec] if known >= rate), _RATES[codec][-1])
        # A frame of AAC holds 6144 bits a channel at most.
        bits = min(_MONO_BIT_RATE if channels == 1 else _BIT_RATE * channels, 6 * played * channels)
        self._stream = container.add_stream(codec, rate=played, layout=target, bit_rate=bits)

    def write_until(self, seconds: Fraction) -> None:
        """See ``SoundTrack``."""
        self.write(self._take(round(seconds * self._rate) - self.written))

    def close(self, seconds: Fraction | None = None) -> None:
        """See ``SoundTrack``; None: nothing more comes."""
        if seconds is not None:
            self.write_until(seconds)
        self._container.mux(self._stream.encode())

    def write(self, samples: np.ndarray) -> None:
        """Encode samples ``[C, n]`` float. What is no number becomes silence; louder than full scale is cut to it."""
        if not samples.shape[1]:
            return
        block = np.nan_to_num(samples.T, posinf=0.0, neginf=0.0).astype(np.float32, copy=False).clip(-1.0, 1.0)
        if self._mixed:
            block = to_mono(block, self._layout)[:, None]
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(block).reshape(1, -1), format="flt", layout=self._source
        )
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self.written, Fraction(1, self._rate)
        self._container.mux(self._stream.encode(frame))
        self.written += samples.shape[1]

    def _take(self, count: int) -> np.ndarray:
        """The next samples ``[C, count]``, silence after the last."""
        pieces, missing = [], count
        while missing > 0:
            if not self._rest.shape[1]:
                block = next(self._blocks, None)
                if block is None:
                    pieces.append(np.zeros((len(self._rest), missing), np.float32))
                    break
                self._rest = block
            pieces.append(self._rest[:, :missing])
            self._rest = self._rest[:, pieces[-1].shape[1] :]
            missing -= pieces[-1].shape[1]
        return np.concatenate(pieces, axis=1) if pieces else self._rest[:, :0]


class CopiedSound:
    """A file's packets as they are."""

    def __init__(self, container: Any, path: Path) -> None:
        """Add the stream; ``copyable`` says whether this works."""
        self._container, self._source = container, open_media(path)
        stream: Any = sound_stream(self._source)
        self._start = stream.start_time or 0
        self._stream = container.add_stream_from_template(stream)
        self._packets = (packet for packet in self._source.demux(stream) if packet.size)
        self._next: Any = next(self._packets, None)

    def write_until(self, seconds: Fraction) -> None:
        """See ``SoundTrack``: packets that end by then."""
        while self._next is not None and self._place(self._next.pts + self._next.duration) <= seconds:
            self._write_next()

    def close(self, seconds: Fraction) -> None:
        """See ``SoundTrack``: the last packet that begins in time is played up to the end; silence is not added."""
        self.write_until(seconds)
        if self._next is not None and self._place(self._next.pts) < seconds:
            self._next.duration = int(seconds / self._next.time_base) + self._start - self._next.pts
            self._write_next()
        self._source.close()

    def _place(self, pts: int) -> Fraction:
        return (pts - self._start) * self._next.time_base

    def _write_next(self) -> None:
        packet, self._next = self._next, next(self._packets, None)
        # What a decoder drops at the beginning lies before zero.
        packet.pts -= self._start
        packet.dts = packet.pts
        packet.stream = self._stream
        self._container.mux(packet)


def copyable(path: Path, form: OutputFormat, seconds: float) -> bool:
    """Whether a file's packets can be the sound of a video that lasts so long: nothing to delay, pad or convert."""
    with open_media(path) as source:
        stream = sound_stream(source)
        if stream is None or stream.codec_context.codec.canonical_name not in form.copied or not stream.time_base:
            return False
        start = stream.start_time or 0
        if abs(float(start * stream.time_base) - origin(source)) > _LATE:
            return False
        end, kind = None, None
        for packet in source.demux(stream):
            if not packet.size:
                continue
            if packet.pts is None or packet.has_sidedata("new_extradata"):
                return False
            if end is not None and abs(float((packet.pts - end) * stream.time_base)) > _GAP:
                # The generator is given the samples without such a gap.
                return False
            if kind is not None and kind != _frame_kind(stream, packet):
                return False
            kind, end = _frame_kind(stream, packet), packet.pts + (packet.duration or 0)
    return end is not None and float((end - start) * stream.time_base) > seconds - _SHORT


def _frame_kind(stream: Any, packet: Any) -> tuple[int, ...]:
    """What has to be the same in all packets of a track: rate and channels, where packets carry them (MPEG audio and
    AAC without a container, from joined files for example)."""
    name = stream.codec_context.codec.canonical_name
    if name == "mp3":
        _, version, rate, mode = bytes(packet)[:4]
        return version & 0x1E, rate & 0x0C, int(mode >= 0xC0)
    if name == "aac" and not stream.codec_context.extradata:
        _, _, rate, channels = bytes(packet)[:4]
        return rate, channels & 0xC0
    return ()
