"""Read audio files, or the sound of videos, as samples.

``read_audio`` returns the sound as the generator receives it, mono at 16 kHz. ``read_sound`` returns it as it was
recorded, with its own rate and channels, for the finished video. Both count time from the same moment as the picture.
The parts of this file: the check that an mp3 is complete, mixing channels to mono, and reading.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.containers import (
    check_declared_length,
    check_index_within_file,
    check_is_file,
    file_url,
    main_sound_stream,
    open_media,
    start_time_of,
)
from flowportrait.media.image import is_image_file

# --- Whether an mp3 is complete ---------------------------------------------------------
#
#     11 sync bits │ version │ layer │ bit rate │ sample rate │ padding │ …  ⇒  the frame's length in bytes
#
# Neither the container nor FFmpeg knows how long an mp3 is unless the encoder went back to write it into the first
# frame (Xing, Info, VBRI): otherwise the duration is a guess from the first bit rate. So a file is complete if it has
# as many frames as it declares or, where it declares none, if its last frame is complete. What lies between or behind
# the frames (tags of files that were joined, padding) is skipped, as players do.

_KBITS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates in kbit/s by version (2 for 2.5 as well) and layer: ISO 11172-3, 2.4.2.3, and ISO 13818-3, 2.4.2.3."""
_RATES = (44_100, 48_000, 32_000)


@dataclass(frozen=True)
class Mp3FrameHeader:
    """The header of one mp3 frame.

    Attributes:
        length: bytes of the frame.
        samples: how many samples it decodes to.
        rate: their rate in Hz.
    """

    length: int
    samples: int
    rate: int


def parse_mp3_header(data: bytes) -> Mp3FrameHeader | None:
    """Return the frame header at the beginning of ``data``.

    It is None where no frame begins or the header does not state a length (free format).
    """
    if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE0 != 0xE0:
        return None
    version, layer = {3: 1, 2: 2, 0: 2.5}.get(data[1] >> 3 & 3), 4 - (data[1] >> 1 & 3)
    bits, rate_index = data[2] >> 4, data[2] >> 2 & 3
    if version is None or layer == 4 or not 0 < bits < 15 or rate_index == 3:
        return None
    mpeg_version = 1 if version == 1 else 2
    sample_rate = _RATES[rate_index] // {1: 1, 2: 2, 2.5: 4}[version]
    samples = 384 if layer == 1 else 576 if layer == 3 and mpeg_version == 2 else 1152
    slot_bytes = 4 if layer == 1 else 1
    bit_rate, padding = _KBITS[mpeg_version, layer][bits - 1] * 1000, data[2] >> 1 & 1
    slot_count = samples // 8 // slot_bytes * bit_rate // sample_rate + padding
    return Mp3FrameHeader(slot_count * slot_bytes, samples, sample_rate)


@dataclass
class Mp3CompletenessCheck:
    """A check, fed with every packet of the mp3 at ``path`` in turn, of whether the whole file was there."""

    path: Path
    _declared_seconds: float | None = field(default=None, init=False)
    _last_lengths: tuple[int, int] | None = field(default=None, init=False)
    _started: bool = field(default=False, init=False)

    def header(self, packet: Any) -> Mp3FrameHeader | None:
        """Record ``packet`` (``av.Packet``) and return the header of the frame that it begins with.

        A packet with a header has to decode; one without holds data between the frames.
        """
        if not self._started and packet.pos is not None:
            self._declared_seconds, self._started = declared_mp3_seconds(self.path, packet.pos), True
        header = parse_mp3_header(bytes(packet)[:4]) if packet.size >= 4 else None
        if header is not None:
            self._last_lengths = (packet.size, header.length)
        return header

    def missing(self, decoded: float) -> str | None:
        """Return a description of what the file lacks after ``decoded`` seconds of sound; None if it is complete."""
        if self._declared_seconds is not None:
            is_short = decoded < 0.999 * self._declared_seconds - 0.1
            return f"only {decoded:.1f} s of {self._declared_seconds:.1f} s are there" if is_short else None
        if self._last_lengths is not None and self._last_lengths[0] < self._last_lengths[1]:
            return f"it ends in the middle of a frame at {decoded:.1f} s"
        return None


def declared_mp3_seconds(path: Path, first: int) -> float | None:
    """Return the length in seconds that a header frame (Xing, Info, VBRI) declares for the file; None without one.

    The header frame lies before the first frame of sound, which begins at byte ``first``.
    """
    with path.open("rb") as file:
        file.seek(max(0, first - 2881))
        before = file.read(min(first, 2881) + 64)
    for marker, count_offset in ((b"Xing", 8), (b"Info", 8), (b"VBRI", 14)):
        marker_offset = before.rfind(marker)
        # The marker follows the side information, at most 36 bytes after its frame's beginning.
        headers = (
            parse_mp3_header(before[start : start + 4])
            for start in range(max(0, marker_offset - 36), max(0, marker_offset - 12))
        )
        header = next((candidate for candidate in headers if candidate is not None), None)
        # Bit 0 of the flags tells whether the number of frames is present.
        if header is None or (marker != b"VBRI" and not before[marker_offset + 7] & 1):
            continue
        place = marker_offset + count_offset
        return int.from_bytes(before[place : place + 4], "big") * header.samples / header.rate
    return None


# --- Channels to mono -------------------------------------------------------------------
#
#     m = C + (L + R) / √2 + (Ls + Rs) / 2                      ITU-R BS.775-4, table 2, mono from 3/2 stereo
#
# So a voice in the centre keeps its loudness. One or two channels are averaged. Low-frequency effects are left out.

_FRONT = {"FL", "FR", "FLC", "FRC", "WL", "WR", "DL", "DR"}
_EFFECTS = {"LFE", "LFE2"}
_DEFAULT_LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
"""The usual layout of so many channels, for files that state none."""


def channel_layout_name(layout: Any) -> str:
    """Return FFmpeg's name of an ``av.AudioLayout``.

    Where a file does not state the positions of its channels, it is the usual layout of as many channels.
    """
    return _DEFAULT_LAYOUTS.get(layout.nb_channels, layout.name) if layout.name.endswith(" channels") else layout.name


def to_mono(samples: np.ndarray, layout: Any) -> np.ndarray:
    """Mix samples ``[N, C]`` in an ``av.AudioLayout`` to mono ``[N]`` float32; the sum may exceed full scale."""
    channels = samples.shape[1]
    if channels <= 2:
        return samples.mean(1)
    # A channel without signal may hold NaN in files of floats; it must not spoil the others.
    return np.nan_to_num(samples, posinf=0.0, neginf=0.0).clip(-1.0, 1.0) @ mono_mix_weights(
        channel_layout_name(layout), channels
    )


@lru_cache(maxsize=32)
def mono_mix_weights(layout: str, channels: int) -> np.ndarray:
    """Return the weight ``[C]`` float32 of each channel of a layout that FFmpeg names ``layout``.

    Without a centre channel a voice is in left and right alike: these are averaged, and the others stay in proportion.
    A layout without known positions is averaged as a whole.
    """
    import av

    try:
        names = [channel.name for channel in av.AudioLayout(layout).channels]
    except ValueError:
        names = []
    if not {"FC", "FL"} & set(names) or len(names) != channels:
        return np.full(channels, 1 / channels, np.float32)
    scale = 1.0 if "FC" in names else np.sqrt(0.5)
    gains = [
        1.0 if name == "FC" else 0.0 if name in _EFFECTS else np.sqrt(0.5) if name in _FRONT else 0.5 for name in names
    ]
    return (scale * np.array(gains)).astype(np.float32)


# --- Reading ----------------------------------------------------------------------------

SAMPLE_RATE = 16_000
"""The rate in Hz of all speech that networks are given."""
SAMPLES_PER_FRAME = SAMPLE_RATE // 25
"""Samples of speech while one video frame is on screen, at 25 frames per second."""

_LOWEST_RATE, _HIGHEST_RATE = 1_000, 1_536_000
"""Hz; other rates mean a damaged file, and a rate of 1 would make 16,000 samples of each one."""
_LONGEST_DELAY = 3600.0
"""Seconds by which sound may start after the picture; more is a broken clock."""
_FIRST_SAMPLES = 1 << 16


@dataclass(frozen=True)
class Sound:
    """A recording with its own rate and channels.

    Attributes:
        samples: ``[C, N]`` float32 in [-1, 1] (a view of interleaved memory).
        rate: in Hz.
        layout: FFmpeg's name of the channels (``mono``, ``stereo``, ``5.1``, …).
        codec: FFmpeg's name of the codec in the file (``aac``, ``pcm_s16le``, …).
        delay: seconds of silence at the beginning of ``samples`` that stand for a late start and are not in the file.
    """

    samples: np.ndarray
    rate: int
    layout: str
    codec: str = ""
    delay: float = 0.0


def read_sound(path: str | Path, longest: float | None = None) -> Sound:
    """Decode ``path`` with its own rate and channels; aligned, cleaned and checked as by ``read_audio``.

    A file that changes its rate or channels on the way is converted to those that it begins with.

    Args:
        path: the file.
        longest: seconds; a longer file is refused as soon as it shows.

    Raises:
        BadInput: see ``read_audio``.
    """
    path = Path(path)
    with _open_sound(path) as (container, stream):
        collected: _SampleBuffer | None = None
        layout, delay = "", 0.0
        for frame in _decode_frames(path, container, stream, None, longest):
            if collected is None:
                layout, rate = frame.layout.name, frame.sample_rate
                late = _delay(container, stream, rate)
                collected, delay = _SampleBuffer(frame.layout.nb_channels, rate, late), late / rate
            collected.append(_interleaved(frame))
        if collected is None or collected.empty:
            raise BadInput(f"{path} holds no sound samples: give a recording with sound in it.")
        codec = stream.codec_context.codec.canonical_name
        return Sound(collected.take().T, collected.rate, layout, codec, delay)


def iter_sound(path: str | Path) -> Iterator[Sound]:
    """Yield the sound of ``read_sound`` in pieces, so that a long recording is never in memory as a whole.

    Raises:
        BadInput: see ``read_audio``; it is raised where the fault is reached.
    """
    path = Path(path)
    with _open_sound(path) as (container, stream):
        delay = 0
        for index, frame in enumerate(_decode_frames(path, container, stream, None, None)):
            rate, layout = frame.sample_rate, channel_layout_name(frame.layout)
            if index == 0 and (delay := _delay(container, stream, rate)):
                yield Sound(np.zeros((frame.layout.nb_channels, delay), np.float32), rate, layout, delay=delay / rate)
            samples = np.nan_to_num(_interleaved(frame), posinf=0.0, neginf=0.0)
            yield Sound(samples.clip(-1.0, 1.0).T, rate, layout)


def read_audio(path: str | Path, rate: int = SAMPLE_RATE, longest: float | None = None) -> np.ndarray:
    """Decode ``path`` to mono samples ``[N]`` float32 at ``rate`` Hz; any source rate is resampled.

    The channels of stereo are averaged, more are mixed after ITU-R BS.775 (see ``to_mono``). Sound that starts after
    the picture of a video is preceded by silence, so that it stays with its picture. Samples that are not numbers
    become silence, louder ones than full scale are clipped.

    Args:
        path: the file.
        rate: of the result, in Hz.
        longest: seconds; a longer file is refused as soon as it shows.

    Raises:
        BadInput: the file is missing, not audio, without an audio stream, cut off, empty, or too long.
    """
    path = Path(path)
    with _open_sound(path) as (container, stream):
        collected = _SampleBuffer(1, rate, _delay(container, stream, rate))
        mixed = False
        for frame in _decode_frames(path, container, stream, rate, longest):
            mixed |= frame.layout.nb_channels > 2
            collected.append(to_mono(_interleaved(frame), frame.layout)[:, None])
        if collected.empty:
            raise BadInput(f"{path} holds no sound samples: give a recording with sound in it.")
        # The sum of many loud channels may exceed full scale.
        return collected.take(scale_to_peak=mixed)[:, 0]


def has_audio(path: str | Path) -> bool:
    """Return whether the file opens and has an audio stream."""
    try:
        with open_media(path) as container:
            return main_sound_stream(container) is not None
    except (av.FFmpegError, OSError, BadInput):
        return False


@contextmanager
def _open_sound(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yield the opened file and its stream of sound, after the checks that need no decoding.

    Raises:
        BadInput: see ``read_audio``.
    """
    check_is_file(path, "audio")
    check_declared_length(path)
    try:
        container = open_media(path)
    except (av.FFmpegError, OSError) as error:
        if is_image_file(path):
            raise BadInput(f"{path} is a picture, not sound: give it as --image.") from error
        raise BadInput(
            f"{path} cannot be read as audio ({_reason(error)}): give a wav, mp3, m4a, flac or ogg file."
        ) from error
    with container:
        stream = main_sound_stream(container)
        if stream is None:
            raise BadInput(f"{path} holds no audio stream: give a file with sound.")
        check_index_within_file(container, path)
        yield container, stream


def _decode_frames(path: Path, container: Any, stream: Any, rate: int | None, longest: float | None) -> Iterator[Any]:
    """Yield frames of interleaved floats of a stream in its own channels.

    Args:
        path: of the file, for messages.
        container: the opened file.
        stream: its stream of sound.
        rate: of the result in Hz; None for the rate and layout of the first frame.
        longest: seconds.

    Raises:
        BadInput: the stream cannot be decoded, ends early, or is longer than ``longest``.
    """
    resampler: Any = None
    source: tuple[str, str, int] | None = None
    layout: Any = None
    seconds = 0.0
    mp3 = Mp3CompletenessCheck(path) if container.format.name == "mp3" else None
    try:
        for packet in container.demux(stream):
            for frame in _decode_packet(packet, mp3):
                frame.pts = None
                setup = (frame.format.name, frame.layout.name, frame.sample_rate)
                if not _LOWEST_RATE <= frame.sample_rate <= _HIGHEST_RATE:
                    raise BadInput(f"{path} is damaged, its rate is {frame.sample_rate} Hz: copy or download it again.")
                if setup != source:
                    if resampler is not None:
                        yield from resampler.resample(None)
                    elif rate is None:
                        # The usual layout, where the file states only the number of its channels.
                        rate, layout = frame.sample_rate, channel_layout_name(frame.layout)
                    resampler, source = av.AudioResampler(format="flt", layout=layout, rate=rate), setup
                seconds += frame.samples / frame.sample_rate
                if longest is not None and seconds > longest:
                    raise BadInput(f"{path} is longer than {longest:g} s: give a shorter recording.")
                yield from resampler.resample(frame)
        if resampler is not None:
            yield from resampler.resample(None)
    except av.FFmpegError as error:
        if seconds:
            reason = f"{_reason(error)} at {seconds:.1f} s"
            raise BadInput(f"{path} is damaged ({reason}): copy or download it again.") from error
        raise BadInput(
            f"{path} cannot be read as audio ({_reason(error)}): give a wav, mp3, m4a, flac or ogg file."
        ) from error
    missing = mp3.missing(seconds) if mp3 else _missing_flac_part(container, stream, seconds)
    if missing:
        raise BadInput(f"{path} is damaged, {missing}: copy or download it again.")


def _decode_packet(packet: Any, mp3: Mp3CompletenessCheck | None) -> list[Any]:
    """Return the frames of a packet; none of what lies between the frames of an mp3."""
    if mp3 is None or not packet.size:
        return packet.decode()
    header = mp3.header(packet)
    try:
        frames = packet.decode()
    except av.FFmpegError:
        if header is not None:
            raise
        return []
    for frame in frames:
        if header is not None:
            # In joined files FFmpeg reports for the first frame the rate of the last one that it looked ahead to.
            frame.sample_rate = header.rate
    return frames


def _missing_flac_part(container: Any, stream: Any, decoded: float) -> str | None:
    """Return what a flac lacks after ``decoded`` seconds, by the number of samples that its header declares."""
    if container.format.name != "flac" or not stream.duration:
        return None
    declared = float(stream.duration * stream.time_base)
    return f"only {decoded:.1f} s of {declared:.1f} s are there" if decoded < 0.98 * declared - 0.1 else None


def _interleaved(frame: Any) -> np.ndarray:
    """Return samples ``[N, C]``, interleaved because PyAV 18 reads beyond the last of eight planes."""
    return frame.to_ndarray().reshape(-1, frame.layout.nb_channels)


class _SampleBuffer:
    """A buffer of interleaved samples ``[N, C]`` that grows in place: an hour of sound is held once, not twice."""

    def __init__(self, channels: int, rate: int, silence: int) -> None:
        self.rate = rate
        self._buffer = np.zeros((silence + _FIRST_SAMPLES, channels), np.float32)
        self._silence = self._used = silence

    @property
    def empty(self) -> bool:
        """Whether no samples were added after the silence at the beginning."""
        return self._used == self._silence

    def append(self, block: np.ndarray) -> None:
        """Add a block ``[n, C]``."""
        end = self._used + len(block)
        if end > len(self._buffer):
            self._buffer.resize((max(end, len(self._buffer) * 5 // 4), self._buffer.shape[1]), refcheck=False)
        self._buffer[self._used : end] = block
        self._used = end

    def take(self, scale_to_peak: bool = False) -> np.ndarray:
        """Return all samples ``[N, C]`` in [-1, 1], non-finite ones as zero; the buffer must not be used afterwards.

        Args:
            scale_to_peak: scale everything down where the peak exceeds full scale, instead of clipping it.
        """
        samples = self._buffer
        samples.resize((self._used, samples.shape[1]), refcheck=False)
        for start in range(0, len(samples), _FIRST_SAMPLES):
            np.nan_to_num(samples[start : start + _FIRST_SAMPLES], copy=False, posinf=0.0, neginf=0.0)
        if scale_to_peak:
            samples /= max(1.0, float(samples.max()), -float(samples.min()))
        return np.clip(samples, -1.0, 1.0, out=samples)


def _delay(container: Any, stream: Any, rate: int) -> int:
    """Return the samples of silence before the sound; none where the file has no moving picture.

    Raises:
        BadInput: it would be hours of them.
    """
    if stream.start_time is None:
        return 0
    seconds = float(stream.start_time * stream.time_base) - start_time_of(container)
    if seconds > _LONGEST_DELAY:
        name = container.name.removeprefix(file_url(""))
        raise BadInput(f"{name} is damaged, its sound starts at {seconds:.0f} s: copy or download it again.")
    return round(seconds * rate)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
