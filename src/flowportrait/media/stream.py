"""Sound that is still arriving, and video that can be watched while it is written.

    stdin: wav, or raw 16-bit mono at 16 kHz ─► pieces, own rate and channels ─┬─► mono at 16 kHz ─► generator
                                                                               └─► buffered ─► frame(i) ─► video
    frames + their sound ─► fragmented mp4 or live webm

A stream of video has a new fragment about every half second and no index at its end.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE, Sound, to_mono
from flowportrait.media.containers import STREAMED_WAV_LENGTH
from flowportrait.media.formats import OUTPUT_FORMATS, OutputFormat, output_format
from flowportrait.media.sound_track import EncodedSoundTrack
from flowportrait.media.video import FPS
from flowportrait.media.write_video import VideoTrack

# --- Pieces of sound --------------------------------------------------------------------


class SoundBuffer:
    """A buffer that passes sound on to the generator and keeps it until the frames that it belongs to are written.

    Iterate over it for the pieces as mono samples at 16 kHz; ``frame`` returns the original sound of a frame.
    """

    def __init__(self, pieces: Iterable[Sound | np.ndarray]) -> None:
        """Take the pieces of sound.

        Args:
            pieces: sound with its own rate and channels, the same for all pieces, or samples ``[n]`` mono at 16 kHz.
        """
        self.pieces = pieces
        self.kept = Sound(np.zeros((1, 0), np.float32), SAMPLE_RATE, "mono")
        self.start = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        return resample_to_speech(self._buffered_pieces())

    def _buffered_pieces(self) -> Iterator[Sound]:
        for piece in self.pieces:
            sound = piece if isinstance(piece, Sound) else Sound(piece[None], SAMPLE_RATE, "mono")
            together = [self.kept.samples, sound.samples] if self.kept.samples.size else [sound.samples]
            self.kept = Sound(np.concatenate(together, axis=1), sound.rate, sound.layout)
            yield sound

    def frame(self, index: int) -> Sound:
        """Return the sound of a video frame, 40 ms at most, and discard what was before it."""
        rate = self.kept.rate
        start, end = (round(number * rate / FPS) for number in (index, index + 1))
        self.kept = Sound(self.kept.samples[:, start - self.start :], rate, self.kept.layout)
        self.start = start
        return Sound(self.kept.samples[:, : end - start], rate, self.kept.layout)


def resample_to_speech(pieces: Iterable[Sound]) -> Iterator[np.ndarray]:
    """Yield the mono sound at 16 kHz of pieces that share one rate: samples ``[n]`` float32, mono at 16 kHz."""
    resampler: Any = None
    for piece in pieces:
        wave = to_mono(piece.samples.T, av.AudioLayout(piece.layout)).clip(-1.0, 1.0)
        if piece.rate == SAMPLE_RATE:
            yield wave
            continue
        if resampler is None:
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[None], np.float32), format="fltp", layout="mono")
        frame.sample_rate = piece.rate
        yield _concatenate_frames(resampler.resample(frame))
    if resampler is not None:
        yield _concatenate_frames(resampler.resample(None))


def concatenate_sounds(pieces: Iterable[Sound]) -> Sound:
    """Return pieces of one rate and layout, at least one, as one sound."""
    sounds = list(pieces)
    return Sound(np.concatenate([piece.samples for piece in sounds], axis=1), sounds[0].rate, sounds[0].layout)


def _concatenate_frames(frames: list[Any]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *(frame.to_ndarray()[0] for frame in frames)])


# --- Sound from standard input ----------------------------------------------------------

PIECE_MILLISECONDS = 40
"""Milliseconds of sound that are read at once."""
FRAGMENT_FRAMES = 12
"""Frames between two fragments of a video that is written as a stream."""
_STREAM_OPTIONS = {
    "mp4": {"movflags": "empty_moov+default_base_moof+frag_keyframe"},
    "webm": {"live": "1", "cluster_time_limit": "500", "flush_packets": "1"},
}
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_SAMPLES = {(_PCM, 1), (_PCM, 2), (_PCM, 3), (_PCM, 4), (_FLOAT, 4), (_FLOAT, 8)}
"""Type and bytes of the samples that can be read."""
_MOST_CHANNELS = 64
_RATES = range(1000, 768_001)
"""Sample rates that are accepted: a header that states 1 Hz would turn a few bytes into hours."""
_MOST_CHUNKS, _LONGEST_CHUNK = 1000, 1 << 16
_USUAL_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
_LAYOUT_OF_MASK = {
    0x4: "mono", 0x3: "stereo", 0xB: "2.1", 0x7: "3.0", 0x107: "4.0", 0x33: "quad", 0x37: "5.0", 0x607: "5.0(side)",
    0x3F: "5.1", 0x60F: "5.1(side)", 0x70F: "6.1", 0x63F: "7.1",
}  # fmt: skip
"""FFmpeg's names of the speaker positions in WAVEFORMATEXTENSIBLE."""
_FILE_MARKERS = {b"ID3": 0, b"fLaC": 0, b"OggS": 0, b"ftyp": 4, b"\x1aE\xdf\xa3": 0}
"""Bytes near the beginning of other kinds of file (mp3, flac, ogg, m4a and mp4, webm), and at which offset.

Taken for raw samples such files would be noise.
"""


def read_speech_stream(source: BinaryIO) -> Iterator[np.ndarray]:
    """Yield mono samples ``[n]`` float32 at 16 kHz as they arrive; see ``iter_sound_stream``."""
    return resample_to_speech(iter_sound_stream(source))


def iter_sound_stream(source: BinaryIO) -> Iterator[Sound]:
    """Yield sound as it arrives, with its own rate and channels.

    Args:
        source: a wav stream, or raw 16-bit mono samples at 16 kHz, little-endian.

    Raises:
        BadInput: a wav stream of samples that are neither linear nor of a size that wav has, a file of another kind, or
            nothing at all.
    """
    head = _read_exactly(source, 12)
    if not head:
        raise BadInput("No sound came in on standard input: pipe wav or raw 16-bit mono 16 kHz samples into it.")
    if any(head.startswith(mark, at) for mark, at in _FILE_MARKERS.items()):
        raise BadInput("Standard input holds a compressed file, not a wav: give it as --audio FILE without --stream.")
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:] == b"WAVE":
        form, bytes_left = _read_wav_header(source)
        pending = b""
    else:
        form, bytes_left = _SampleFormat("i", 2, 1, SAMPLE_RATE, "mono"), None
        pending = head
    width = form.size * form.channels
    piece = max(1, PIECE_MILLISECONDS * form.rate // 1000) * width
    while True:
        data = source.read(piece if bytes_left is None else min(piece, bytes_left)) or b""
        bytes_left = None if bytes_left is None else bytes_left - len(data)
        pending += data
        whole = len(pending) // width * width
        if whole:
            samples = form.decode(pending[:whole]).reshape(-1, form.channels)
            pending = pending[whole:]
            yield Sound(np.nan_to_num(samples, posinf=0.0, neginf=0.0).clip(-1.0, 1.0).T, form.rate, form.layout)
        if not data:
            break


@dataclass(frozen=True)
class _SampleFormat:
    """The format of samples in a stream.

    Attributes:
        kind: ``i`` integers, ``f`` floats.
        size: bytes of a sample.
        rate: in Hz.
        layout: FFmpeg's name of the channels.
    """

    kind: str
    size: int
    channels: int
    rate: int
    layout: str

    def decode(self, data: bytes) -> np.ndarray:
        """Return samples ``[n]`` float32, full scale 1."""
        if self.kind == "f":
            return np.frombuffer(data, f"<f{self.size}").astype(np.float32)
        if self.size == 1:
            # Samples of one byte are unsigned, all others signed.
            return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
        if self.size == 3:
            # The three bytes become the highest of 32-bit samples.
            wide = np.zeros((len(data) // 3, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            return wide.view("<i4")[:, 0].astype(np.float32) / 2**31
        return np.frombuffer(data, f"<i{self.size}").astype(np.float32) / 2 ** (8 * self.size - 1)


def _read_exactly(source: BinaryIO, count: int) -> bytes:
    """Return the next ``count`` bytes of a stream, fewer only where it ends."""
    data = bytearray()
    while len(data) < count and (more := source.read(min(count - len(data), 1 << 16))):
        data += more
    return bytes(data)


def _read_wav_header(source: BinaryIO) -> tuple[_SampleFormat, int | None]:
    """Return the format of a wav stream and how many bytes of samples it has; leave it at the first sample.

    The number of bytes is None where the header was written before it was known.
    """
    sample_format, long_size = None, None
    for _ in range(_MOST_CHUNKS):
        name, size = struct.unpack("<4sI", _read_exactly(source, 8).ljust(8, b"\0"))
        if name == b"data" and sample_format:
            if size == 0xFFFF_FFFF and long_size:
                return sample_format, long_size
            return sample_format, size if 0 < size < STREAMED_WAV_LENGTH else None
        if name in (b"data", b"\0\0\0\0"):
            break
        if name not in (b"fmt ", b"ds64"):
            _skip(source, size + size % 2)
            continue
        if size > _LONGEST_CHUNK:
            break
        body = _read_exactly(source, size + size % 2)
        if name == b"ds64" and len(body) >= 16:
            # RF64 (EBU Tech 3306) and BW64: lengths of files over four gigabytes.
            (long_size,) = struct.unpack_from("<Q", body, 8)
        if name == b"fmt ":
            sample_format = _sample_format(body)
    raise BadInput("The wav stream on standard input has no format before its samples: send a whole wav.")


def _skip(source: BinaryIO, count: int) -> None:
    while count > 0 and (data := source.read(min(count, 1 << 16))):
        count -= len(data)


def _sample_format(body: bytes) -> _SampleFormat:
    """Return the format that the chunk ``fmt`` of a wav describes."""
    if len(body) < 16:
        raise BadInput("The wav stream on standard input ends within its header: send a whole wav.")
    code, channels, rate, _, align, bits = struct.unpack_from("<HHIIHH", body)
    mask = 0
    if code == _EXTENSIBLE and len(body) >= 26:
        mask, code = struct.unpack_from("<IH", body, 20)
    # Samples of 20 bits lie in three bytes.
    size = align // channels if channels and align % channels == 0 else 0
    size = size or -(-bits // 8)
    if (code, size) not in _SAMPLES or bits > 8 * size:
        raise BadInput(
            f"The wav stream holds {bits}-bit samples of type {code}: send integers of 8 to 32 bits, or floats of 32 "
            "or 64."
        )
    if not 0 < channels <= _MOST_CHANNELS or rate not in _RATES:
        raise BadInput(f"The wav stream says it has {channels} channels at {rate} Hz: send a whole wav.")
    return _SampleFormat("f" if code == _FLOAT else "i", size, channels, rate, _layout(channels, mask))


def _layout(channels: int, mask: int) -> str:
    """Return FFmpeg's name of the channels in a wav's mask; without a mask, the usual layout of as many channels."""
    if mask.bit_count() == channels and (known := _LAYOUT_OF_MASK.get(mask)):
        return known
    return _USUAL_LAYOUTS.get(channels, f"{channels} channels")


# --- Video that can be watched while it is written --------------------------------------


class _Sink:
    """The target of a stream for FFmpeg, which does not report errors of its target: the first is kept in ``error``.

    Each piece is written completely and flushed.
    """

    def __init__(self, target: BinaryIO) -> None:
        self.target = target
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        remaining = memoryview(data)
        try:
            while remaining and self.error is None:
                remaining = remaining[self.target.write(remaining) :]
            self.target.flush()
        except OSError as error:
            self.error = error
        return len(data)


def write_video_stream(
    target: Path | BinaryIO,
    frames: Iterable[np.ndarray],
    sound: Callable[[int], Sound | np.ndarray],
    crf: int = 20,
    tags: Mapping[str, str] | None = None,
) -> int:
    """Write frames as they arrive, with their sound; what is written so far can be played at any moment.

    The format is fragmented mp4, or webm where the file is named so. A file is created with the first frame; a pipe
    with a closed reading end stops the stream.

    Args:
        target: a file, or an object to write to.
        frames: ``[H, W, 3]`` uint8 RGB at 25 frames a second; odd sides lose a pixel.
        sound: returns the sound of frame i, up to 40 ms: with its own rate and channels, always the same, or samples
            ``[n]`` mono at 16 kHz. Where it is shorter, silence follows.
        crf: quality on the scale of H.264, lower is better.
        tags: container metadata.

    Returns:
        How many frames were written.

    Raises:
        BadInput: the file cannot be written.
    """
    form = output_format(target) if isinstance(target, Path) else OUTPUT_FORMATS[".mp4"]
    remaining = iter(frames)
    first = next(remaining, None)
    if first is None:
        return 0
    try:
        # Unbuffered, so that a fragment is on disk once it is complete.
        opened = target.open("wb", buffering=0) if isinstance(target, Path) else nullcontext(target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    with opened as file:
        sink = _Sink(file)
        count = _mux(sink, form, chain([first], remaining), first.shape, sound, crf, tags)
    if sink.error is not None and not isinstance(sink.error, BrokenPipeError):
        raise _cannot_write(target, sink.error) from sink.error
    return count


def _cannot_write(target: Path | BinaryIO, error: OSError) -> BadInput:
    where = target if isinstance(target, Path) else "the video"
    return BadInput(f"Cannot write {where} ({error.strerror}): choose another --output.")


def _mux(
    sink: _Sink,
    form: OutputFormat,
    frames: Iterable[np.ndarray],
    shape: tuple[int, ...],
    sound: Callable[[int], Sound | np.ndarray],
    crf: int,
    tags: Mapping[str, str] | None,
) -> int:
    with av.open(sink, "w", format=form.muxer, options=_STREAM_OPTIONS[form.muxer]) as container:
        container.metadata.update(tags or {})
        options = {"g": str(FRAGMENT_FRAMES)} | ({"tune": "zerolatency"} if form.video_codec == "libx264" else {})
        pictures = VideoTrack(container, form.video_codec, Fraction(FPS), crf, shape, options)
        voice: EncodedSoundTrack | None = None
        for frame in frames:
            if sink.error is not None:
                break
            piece_or_samples = sound(pictures.count)
            piece = (
                piece_or_samples
                if isinstance(piece_or_samples, Sound)
                else Sound(piece_or_samples[None], SAMPLE_RATE, "mono")
            )
            if voice is None:
                # Before the first packet: streams are added to an empty container.
                voice = EncodedSoundTrack(container, str(form.audio_codec), piece.rate, piece.layout)
            pictures.write(frame)
            voice.write(_fit_to_frame(piece, voice.written, pictures.count))
        pictures.close()
        if voice is not None:
            voice.close()
    return pictures.count


def _fit_to_frame(piece: Sound, written: int, frame: int) -> np.ndarray:
    """Return samples ``[C, n]``, cut or padded with silence so that the sound ends with a frame.

    Args:
        piece: the sound of the frame.
        written: samples that are written already.
        frame: how many frames are written, with this one.
    """
    block = np.zeros((len(piece.samples), round(frame * piece.rate / FPS) - written), np.float32)
    available = piece.samples[:, : block.shape[1]]
    block[:, : available.shape[1]] = available
    return block
