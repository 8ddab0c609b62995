"""Sound that is still coming in, and video that can be watched while it is made.

    stdin: wav, or raw 16-bit little-endian mono at 16 kHz ─► pieces at 16 kHz
    frames + their sound ─► fragmented mp4 (H.264 + AAC): a new fragment every half second, no index to wait for
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.container import STREAMED
from flowportrait.media.video import FPS, SAMPLES_PER_FRAME

PIECE_BYTES = 1280
"""Read at a time: 40 ms of 16-bit mono at 16 kHz."""
FRAGMENT_FRAMES = 12
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_FILES = {b"ID3": 0, b"fLaC": 0, b"OggS": 0, b"ftyp": 4, b"\x1aE\xdf\xa3": 0}
"""What files of other kinds (mp3, flac, ogg, m4a and mp4, webm) hold near their beginning, and at which byte: taken for
raw samples they would be noise."""


def read_stream(source: BinaryIO) -> Iterator[np.ndarray]:
    """Yield mono samples ``[n]`` float32 at 16 kHz as they arrive: a wav stream of any rate, or raw samples.

    Raises:
        BadInput: a wav stream that is neither 16-bit nor 32-bit float, a file of another kind, or nothing at all.
    """
    head = _exactly(source, 12)
    if not head:
        raise BadInput("No sound came in on standard input: pipe wav or raw 16-bit mono 16 kHz samples into it.")
    if any(head.startswith(mark, at) for mark, at in _FILES.items()):
        raise BadInput("Standard input holds a compressed file, not a wav: give it as --audio FILE without --stream.")
    if head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
        kind, channels, rate, left = _wav_format(source)
        head = b""
    else:
        kind, channels, rate, left = np.dtype("<i2"), 1, SAMPLE_RATE, None
    resampler = None if rate == SAMPLE_RATE else av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    width = kind.itemsize * channels
    rest = head
    while True:
        wanted = max(width, PIECE_BYTES // width * width)
        data = source.read(wanted if left is None else min(wanted, left)) or b""
        left = None if left is None else left - len(data)
        rest += data
        whole = len(rest) // width * width
        if whole:
            samples = np.frombuffer(rest[:whole], kind).reshape(-1, channels)
            scale = 32768.0 if kind.kind == "i" else 1.0
            wave = np.nan_to_num((samples.astype(np.float32) / scale).mean(1)).clip(-1.0, 1.0)
            rest = rest[whole:]
            yield wave if resampler is None else _resample(resampler, wave, rate)
        if not data:
            break
    if resampler is not None:
        yield _resample(resampler, None, rate)


def _exactly(source: BinaryIO, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := source.read(count - len(data))):
        data += more
    return data


def _wav_format(source: BinaryIO) -> tuple[np.dtype[Any], int, int, int | None]:
    """Sample type, channels, rate, and how many bytes of samples there are, None where the header was written before
    anybody knew; leaves the stream at the first sample."""
    found = None
    while True:
        name, size = struct.unpack("<4sI", _exactly(source, 8).ljust(8, b"\0"))
        if name == b"data" and found:
            return *found, size if 0 < size < STREAMED else None
        if name in (b"data", b"\0\0\0\0"):
            raise BadInput("The wav stream on standard input has no format before its samples: send a whole wav.")
        body = _exactly(source, size + size % 2)
        if name == b"fmt ":
            if len(body) < 16:
                raise BadInput("The wav stream on standard input ends within its header: send a whole wav.")
            code, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", body)
            if code == _EXTENSIBLE and len(body) >= 26:
                (code,) = struct.unpack_from("<H", body, 24)
            if (code, bits) not in ((_PCM, 16), (_FLOAT, 32)):
                raise BadInput(f"The wav stream holds {bits}-bit samples of type {code}: send 16-bit or 32-bit float.")
            if not channels or not rate:
                raise BadInput(f"The wav stream says it has {channels} channels at {rate} Hz: send a whole wav.")
            found = np.dtype("<i2" if code == _PCM else "<f4"), channels, rate


def _resample(resampler: Any, wave: np.ndarray | None, rate: int) -> np.ndarray:
    frame = None
    if wave is not None:
        frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = rate
    pieces = [out.to_ndarray()[0] for out in resampler.resample(frame)]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


class _Sink:
    """Where a stream is written: all of every piece at once, and what goes wrong is kept for later, since FFmpeg, which
    calls this, would forget what it was."""

    def __init__(self, target: BinaryIO) -> None:
        self.target = target
        self.trouble: OSError | None = None

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        try:
            while left and self.trouble is None:
                left = left[self.target.write(left) :]
            self.target.flush()
        except OSError as error:
            self.trouble = error
        return len(data)


def write_stream(
    target: Path | BinaryIO,
    frames: Iterable[np.ndarray],
    sound: Callable[[int], np.ndarray],
    crf: int = 20,
    tags: Mapping[str, str] | None = None,
) -> int:
    """Write frames ``[H, W, 3]`` uint8 as they come, with ``sound(i)``, the up to 640 samples of frame i; returns how
    many frames were written. What is written so far can be played at any moment. A file is made with the first frame;
    a pipe whose reader has gone ends the stream.

    Raises:
        BadInput: the file cannot be written.
    """
    coming = iter(frames)
    first = next(coming, None)
    if first is None:
        return 0
    try:
        # Unbuffered: what a fragment holds is there once it is complete.
        opened = target.open("wb", buffering=0) if isinstance(target, Path) else nullcontext(target)
    except OSError as error:
        raise _unwritable(target, error) from error
    with opened as file:
        sink = _Sink(file)
        count = _mux(sink, chain([first], coming), sound, crf, tags)
    if sink.trouble is not None and not isinstance(sink.trouble, BrokenPipeError):
        raise _unwritable(target, sink.trouble) from sink.trouble
    return count


def _unwritable(target: Path | BinaryIO, error: OSError) -> BadInput:
    where = target if isinstance(target, Path) else "the video"
    return BadInput(f"Cannot write {where} ({error.strerror}): choose another --output.")


def _mux(
    sink: _Sink,
    frames: Iterable[np.ndarray],
    sound: Callable[[int], np.ndarray],
    crf: int,
    tags: Mapping[str, str] | None,
) -> int:
    flags = {"movflags": "empty_moov+default_base_moof+frag_keyframe"}
    count = 0
    video: Any = None
    voice: Any = None
    with av.open(sink, "w", format="mp4", options=flags) as container:
        container.metadata.update(tags or {})
        for frame in frames:
            if sink.trouble is not None:
                break
            image = np.ascontiguousarray(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])
            if video is None:
                options = {"crf": str(crf), "preset": "veryfast", "tune": "zerolatency", "g": str(FRAGMENT_FRAMES)}
                video = container.add_stream("libx264", rate=FPS, options=options)
                video.height, video.width = image.shape[:2]
                video.pix_fmt = "yuv420p"
                voice = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", bit_rate=128_000)
            shown = av.VideoFrame.from_ndarray(image, format="rgb24")
            shown.pts, shown.time_base = count, Fraction(1, FPS)
            container.mux(video.encode(shown))
            block = np.zeros(SAMPLES_PER_FRAME, np.float32)
            heard = sound(count)[:SAMPLES_PER_FRAME]
            block[: len(heard)] = heard
            spoken = av.AudioFrame.from_ndarray(block[None], format="fltp", layout="mono")
            spoken.sample_rate, spoken.time_base = SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
            spoken.pts = count * SAMPLES_PER_FRAME
            container.mux(voice.encode(spoken))
            count += 1
        if video is not None:
            container.mux(video.encode())
            container.mux(voice.encode())
    return count
