"""Video files in: any container to 25 fps RGB, as a display shows it (``media.display``).

Inside the package every clip has 25 frames a second and 16 kHz mono audio. The conversion happens here, once,
by presentation time: frame ``i`` of a clip is the source frame that was on screen at ``i / 25`` seconds after the
file's first picture or sound, whichever comes first; ``read_audio`` counts from the same moment.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.container import (
    check_is_file,
    check_length,
    check_whole,
    open_media,
    origin,
    sound_stream,
    video_stream,
)
from flowportrait.media.display import MOST_PIXELS, Display
from flowportrait.media.image import is_picture

FPS = 25
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS

_LONGEST_GAP = 3600.0
"""Seconds for which one picture may be shown; more is a broken clock."""
_SEEK_MARGIN = 0.5


def iter_frames(
    path: str | Path,
    fps: float | Fraction = FPS,
    start: int = 0,
    longest: float | None = None,
    most_pixels: int = MOST_PIXELS,
) -> Generator[np.ndarray, None, None]:
    """Yield RGB frames ``[H, W, 3]`` uint8 resampled in time to ``fps``, from number ``start`` on.

    Upright and with square pixels; HDR is mapped to SDR, with a warning. Of several streams the moving picture is
    taken, not a cover.

    Args:
        path: the file.
        fps: frames a second of the result.
        start: frames that are left out at the beginning, without decoding them where the file allows.
        longest: seconds; more is refused as soon as it shows.
        most_pixels: of a frame; larger ones are refused before the decoder makes room for them.

    Raises:
        BadInput: the file is missing, empty, is not a video, is cut off, holds frames that cannot be decoded or are too
            large, or is too long.
    """
    path, fps = Path(path), float(fps)
    with _open_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        emitted, last, begin, rgb = 0, None, origin(container), Display(path, stream, most_pixels)
        # Pictures may grow on the way.
        stream.codec_context.options = {"max_pixels": str(most_pixels)}
        try:
            for frame in _decode_from(container, stream, begin + (start - 1) / fps if start else None):
                time = float(frame.time) if frame.time is not None else begin + emitted / fps
                if last is None and start:
                    # After a seek: this frame is the first one that is due from here on.
                    emitted = max(0, math.ceil((time - begin) * fps - 0.5))
                # Everything due before this frame appears shows the previous one.
                if last is not None and emitted / fps < time - begin - 0.5 / fps:
                    _check_clock(path, emitted / fps, time - begin, longest)
                    shown = None
                    while emitted / fps < time - begin - 0.5 / fps:
                        if emitted >= start:
                            shown = rgb(last) if shown is None else shown
                            yield shown
                        emitted += 1
                last = frame
        except av.FFmpegError as error:
            reason = f"{_reason(error)} at {emitted / fps:.1f} s"
            raise BadInput(f"{path} is damaged ({reason}): give a video that plays to its end.") from error
        if last is None:
            raise BadInput(f"{path} holds no decodable frame: give another file.")
        length = max(_end_time(stream, begin), (emitted + 1) / fps)
        _check_clock(path, emitted / fps, length, longest)
        shown = rgb(last)
        while emitted / fps < length - 0.5 / fps:
            if emitted >= start:
                yield shown
            emitted += 1


def _check_clock(path: Path, now: float, until: float, longest: float | None) -> None:
    """That a picture may be shown from ``now`` until another time, in seconds.

    Raises:
        BadInput: it may not.
    """
    if until - now > _LONGEST_GAP:
        raise BadInput(
            f"{path} is damaged (its clock jumps by {until - now:.0f} s at {now:.1f} s): "
            "give a video that plays to its end."
        )
    if longest is not None and until > longest:
        raise BadInput(f"{path} is longer than {longest:g} s: give a shorter video.")


def _decode_from(container: Any, stream: Any, time: float | None) -> Iterator[Any]:
    """Frames from the last key frame before ``time`` seconds on; all of them where that is None or cannot be found."""
    if time is not None:
        # A key frame may be followed by pictures that need what came before it: go back some more.
        container.seek(round(max(time - _SEEK_MARGIN, 0.0) * av.time_base))
        frames = container.decode(stream)
        first = next(frames, None)
        if first is not None and first.time is not None and first.time <= time:
            yield first
            yield from frames
            return
        container.seek(0)
    yield from container.decode(stream)


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """The opened file and its moving picture, after the checks that need no decoding."""
    check_is_file(path, "video")
    check_length(path)
    try:
        container = open_media(path)
    except (av.FFmpegError, OSError) as error:
        if is_picture(path):
            raise BadInput(f"{path} is a picture, not a video: give it as --image.") from error
        reason = _reason(error)
        raise BadInput(f"{path} cannot be opened as a video ({reason}): give an mp4, mov, webm or avi file.") from error
    with container:
        stream = video_stream(container)
        if stream is None:
            advice = "its sound is given as --audio" if sound_stream(container) else "give a file with pictures"
            raise BadInput(f"{path} holds no video stream: {advice}.")
        check_whole(container, path)
        yield container, stream


def _end_time(stream: Any, start: float) -> float:
    if stream.duration is None or stream.time_base is None:
        return 0.0
    first = float((stream.start_time or 0) * stream.time_base)
    return first + float(stream.duration * stream.time_base) - start


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
