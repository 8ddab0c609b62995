"""Clips from other people, read within bounds: 35 kB of H.264 can hold gigabytes of pictures, and a header can lie.

    packets counted and timed, nothing decoded ─► decoded frame by frame, the decoder itself refuses larger pictures

``read_clip`` never holds more than ``ClipLimits.decoded`` bytes of pictures, whatever the file says of itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.audio import has_audio, read_audio
from flowportrait.media.container import open_media
from flowportrait.media.video import FPS, iter_frames

_MOST_PACKETS = 500
"""Packets a second that are read of one stream; sound of 2.5 ms a packet has 400."""
_SLOWEST_SOUND = 4_000
"""Hz; a lower rate would make hours of a few bytes."""


@dataclass(frozen=True)
class ClipLimits:
    """What a clip may hold. seconds: its length; pixels: of one picture; decoded: bytes of all its pictures at 25
    frames a second, RGB."""

    seconds: float
    pixels: int
    decoded: int


SERVED = ClipLimits(seconds=120.0, pixels=3840 * 2160, decoded=2**30)
"""For a clip that came over a network: 54 s of 512 px."""
LOCAL = ClipLimits(seconds=3600.0, pixels=8192 * 4320, decoded=8 * 2**30)
"""For a file on this computer that somebody else may have made."""


def bounded_frames(path: Path, limits: ClipLimits = LOCAL) -> Iterator[np.ndarray]:
    """Frames as ``iter_frames`` yields them; nothing is kept, so ``decoded`` does not count.

    Raises:
        BadInput: as ``iter_frames``, or the file exceeds the limits.
    """
    check_clip(path, limits)
    for count, frame in enumerate(iter_frames(path, most_pixels=limits.pixels), 1):
        if count > limits.seconds * FPS + 1:
            raise _too_long(path, limits)
        yield frame


def read_clip(path: Path, limits: ClipLimits = LOCAL) -> tuple[np.ndarray, np.ndarray | None]:
    """Frames ``[T, H, W, 3]`` uint8 and sound ``[N]`` float32 at 16 kHz; None where there is no sound.

    Raises:
        BadInput: as ``iter_frames`` and ``read_audio``, the size of the picture changes on the way, or the file exceeds
            the limits.
    """
    frames: np.ndarray | None = None
    count = 0
    expected = round(check_clip(path, limits) * FPS) + FPS
    for frame in bounded_frames(path, limits):
        if frames is None:
            most = limits.decoded // frame.nbytes
            # Memory that is never written to costs nothing; growing an array would hold it twice.
            frames = np.empty((min(expected, most), *frame.shape), np.uint8)
        if frame.shape != frames.shape[1:]:
            raise BadInput(f"{path} changes the size of its picture: convert it to one size first.")
        if count == len(frames):
            raise BadInput(
                f"{path} holds more than {limits.decoded / 2**30:g} GiB of pictures: cut it, or scale it down."
            )
        frames[count] = frame
        count += 1
    assert frames is not None
    audio = read_audio(path, longest=limits.seconds + 1) if has_audio(path) else None
    return frames[:count], audio


def check_clip(path: Path, limits: ClipLimits) -> float:
    """Seconds that the file lasts by its packets and by its header, whichever is more; nothing is decoded.

    Raises:
        BadInput: it exceeds the limits. What cannot be opened at all is left to whoever decodes it.
    """
    try:
        with open_media(path) as container:
            for stream in container.streams.video:
                if stream.width * stream.height > limits.pixels:
                    raise BadInput(
                        f"{path} has pictures of {stream.width}x{stream.height} px, more than "
                        f"{limits.pixels / 1e6:.0f} megapixels: scale it down."
                    )
            for sound in container.streams.audio:
                if 0 < sound.rate < _SLOWEST_SOUND:
                    raise BadInput(f"{path} has sound at {sound.rate} Hz: give 8000 Hz or more.")
            return _seconds(container, path, limits)
    except (av.FFmpegError, OSError):
        return limits.seconds


def _seconds(container: av.container.InputContainer, path: Path, limits: ClipLimits) -> float:
    streams = [*container.streams.video, *container.streams.audio]
    longest, counts, first = 0.0, dict.fromkeys((stream.index for stream in streams), 0), float("inf")
    for stream in streams:
        if stream.duration and stream.time_base:
            longest = max(longest, float(stream.duration * stream.time_base))
    if longest > limits.seconds + 1:
        raise _too_long(path, limits)
    last = -float("inf")
    for packet in container.demux(streams):
        counts[packet.stream_index] += 1
        moment = packet.dts if packet.pts is None else packet.pts
        if moment is not None and packet.time_base:
            begin = float(moment * packet.time_base)
            first, last = min(first, begin), max(last, begin + float((packet.duration or 0) * packet.time_base))
        if last - first > limits.seconds + 1 or max(counts.values()) > limits.seconds * _MOST_PACKETS:
            raise _too_long(path, limits)
    # Raw streams have no times at all.
    return max(longest, last - first) if last >= first else limits.seconds


def _too_long(path: Path, limits: ClipLimits) -> BadInput:
    return BadInput(f"{path} lasts more than {limits.seconds:g} s, or claims to: cut it.")
