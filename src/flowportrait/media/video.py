"""Read videos: any container to 25 fps RGB, within limits for files of other people, and the cuts in them.

Inside the package every clip has 25 frames a second and 16 kHz mono audio. The conversion happens here, once, by
presentation time: frame ``i`` of a clip is the source frame that was on screen ``i / 25`` seconds after the file's
first picture or sound, whichever comes first; ``read_audio`` counts from the same moment. Frames are converted to what
a display shows (``media.colour``).

The parts of this file: a pool of threads that keeps the order of its results, the detector of cuts, reading frames,
the frame rate of a file, and reading within limits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import cv2
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME, has_audio, read_audio
from flowportrait.media.colour import MAX_FRAME_PIXELS, DisplayConverter
from flowportrait.media.containers import (
    check_declared_length,
    check_index_within_file,
    check_is_file,
    main_sound_stream,
    main_video_stream,
    open_media,
    start_time_of,
)
from flowportrait.media.image import is_image_file

# --- Threads ----------------------------------------------------------------------------
#
# Drawing, scaling and marking pictures runs outside Python's global lock, so threads use all cores.
#
#     items  1 2 3 4 5 6 …      taken 1 │ in work 2 3 4 │ not requested yet 5 6 …

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int) -> Iterator[Result]:
    """Yield ``work(item)`` for each of ``items`` in order, with several of them worked on at once.

    ``items`` are requested in the caller's thread. An error of ``work`` is raised where its result would be yielded.

    Args:
        work: called in a thread for each item.
        items: what is worked on.
        workers: threads; with fewer than two, all work is done in the caller's thread.
        ahead: how many items are worked on or wait to be yielded at most.
    """
    if workers < 2:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                if len(pending) == ahead:
                    yield pending.popleft().result()
                pending.append(pool.submit(work, item))
            while pending:
                yield pending.popleft().result()
        finally:
            # The results of these will not be used any more.
            for future in pending:
                future.cancel()


# --- Cuts -------------------------------------------------------------------------------
#
#     cut at t  ⇔  d[t] > LEAST  and  d[t] > RATIO · median of the last d     d = mean |thumbnail[t] − thumbnail[t − 1]|
#
# A cut is a change that exceeds the motion around it; a wave of the hand or a flickering lamp changes the picture
# before and after as well.

MIN_CUT_CHANGE = 12.0
"""Smallest mean change of the thumbnail at a cut, of 255."""
MIN_CUT_RATIO = 5.0
"""Smallest ratio of the change at a cut to the median of the changes before it."""
CUT_HISTORY, MIN_CUT_HISTORY = 12, 4
"""How many past changes the median is taken of, and how many are needed to trust it."""
_THUMBNAIL = (32, 18)
_SAMPLED_SIDE = 144
"""Pixels of the shorter side that are read: larger pictures are subsampled and average to the same thumbnail."""


class CutDetector:
    """A detector of cuts, called with one frame after the other of a video."""

    def __init__(self) -> None:
        self._previous: np.ndarray | None = None
        self._changes: deque[float] = deque(maxlen=CUT_HISTORY)

    def __call__(self, frame: np.ndarray) -> bool:
        """Return whether ``frame`` ``[H, W, 3]`` uint8 begins a new shot; the first one of a video does not."""
        step = max(1, min(frame.shape[:2]) // _SAMPLED_SIDE)
        thumbnail = cv2.resize(frame[::step, ::step], _THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        previous, self._previous = self._previous, thumbnail
        if previous is None:
            return False
        change = float(np.abs(thumbnail - previous).mean())
        usual_change = float(np.median(self._changes)) if self._changes else 0.0
        if len(self._changes) < MIN_CUT_HISTORY:
            # Too few frames show how much this shot moves: assume a lot.
            usual_change = max(usual_change, MIN_CUT_CHANGE / 2)
        if change > MIN_CUT_CHANGE and change > MIN_CUT_RATIO * usual_change:
            self._changes.clear()
            return True
        self._changes.append(change)
        return False


# --- Frames -----------------------------------------------------------------------------

FPS = SAMPLE_RATE // SAMPLES_PER_FRAME
"""Frames per second of all motion, and of all videos inside the package."""

_LONGEST_GAP = 3600.0
"""Seconds for which one picture may be shown; more is a broken clock."""
_SEEK_MARGIN = 0.5


def iter_frames(
    path: str | Path,
    fps: float | Fraction = FPS,
    start: int = 0,
    longest: float | None = None,
    max_pixels: int = MAX_FRAME_PIXELS,
) -> Generator[np.ndarray, None, None]:
    """Yield RGB frames ``[H, W, 3]`` uint8 resampled in time to ``fps``, from number ``start`` on.

    They are upright and have square pixels; HDR is mapped to SDR, with a warning. Of several streams the moving picture
    is read, not a cover.

    Args:
        path: the file.
        fps: frames a second of the result.
        start: how many frames are skipped at the beginning, without decoding them where the file allows.
        longest: seconds; a longer file is refused as soon as it shows.
        max_pixels: largest number of pixels of a frame; larger ones are refused before the decoder allocates them.

    Raises:
        BadInput: the file is missing, empty, is not a video, is cut off, holds frames that cannot be decoded or are too
            large, or is too long.
    """
    path, fps = Path(path), float(fps)
    with _open_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        emitted, last, begin, rgb = 0, None, start_time_of(container), DisplayConverter(path, stream, max_pixels)
        # The size of the pictures may grow within the file.
        stream.codec_context.options = {"max_pixels": str(max_pixels)}
        try:
            for frame in _decode_from(container, stream, begin + (start - 1) / fps if start else None):
                time = float(frame.time) if frame.time is not None else begin + emitted / fps
                if last is None and start:
                    # After a seek: this frame is the first one that is due from here on.
                    emitted = max(0, math.ceil((time - begin) * fps - 0.5))
                # Output frames before this frame's time show the previous one.
                if last is not None and emitted / fps < time - begin - 0.5 / fps:
                    _check_clock(path, emitted / fps, time - begin, longest)
                    rgb_frame = None
                    while emitted / fps < time - begin - 0.5 / fps:
                        if emitted >= start:
                            rgb_frame = rgb(last) if rgb_frame is None else rgb_frame
                            yield rgb_frame
                        emitted += 1
                last = frame
        except av.FFmpegError as error:
            reason = f"{_reason(error)} at {emitted / fps:.1f} s"
            raise BadInput(f"{path} is damaged ({reason}): give a video that plays to its end.") from error
        if last is None:
            raise BadInput(f"{path} holds no decodable frame: give another file.")
        length = max(_end_time(stream, begin), (emitted + 1) / fps)
        _check_clock(path, emitted / fps, length, longest)
        rgb_frame = rgb(last)
        while emitted / fps < length - 0.5 / fps:
            if emitted >= start:
                yield rgb_frame
            emitted += 1


def _check_clock(path: Path, now: float, until: float, longest: float | None) -> None:
    """Check that a picture may be shown from ``now`` until ``until``, in seconds.

    Raises:
        BadInput: that is too long, or the video is.
    """
    if until - now > _LONGEST_GAP:
        raise BadInput(
            f"{path} is damaged (its clock jumps by {until - now:.0f} s at {now:.1f} s): "
            "give a video that plays to its end."
        )
    if longest is not None and until > longest:
        raise BadInput(f"{path} is longer than {longest:g} s: give a shorter video.")


def _decode_from(container: Any, stream: Any, time: float | None) -> Iterator[Any]:
    """Yield frames from the last key frame before ``time`` seconds on; all where that is None or cannot be found."""
    if time is not None:
        # A key frame may be followed by pictures that depend on earlier ones, so the seek goes back further.
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
    """Yield the opened file and its moving picture, after the checks that need no decoding."""
    check_is_file(path, "video")
    check_declared_length(path)
    try:
        container = open_media(path)
    except (av.FFmpegError, OSError) as error:
        if is_image_file(path):
            raise BadInput(f"{path} is a picture, not a video: give it as --image.") from error
        reason = _reason(error)
        raise BadInput(f"{path} cannot be opened as a video ({reason}): give an mp4, mov, webm or avi file.") from error
    with container:
        stream = main_video_stream(container)
        if stream is None:
            advice = "its sound is given as --audio" if main_sound_stream(container) else "give a file with pictures"
            raise BadInput(f"{path} holds no video stream: {advice}.")
        check_index_within_file(container, path)
        yield container, stream


def _end_time(stream: Any, start: float) -> float:
    """Return the seconds from ``start`` to the end of a stream, 0 where the file does not state it."""
    if stream.duration is None or stream.time_base is None:
        return 0.0
    first = float((stream.start_time or 0) * stream.time_base)
    return first + float(stream.duration * stream.time_base) - start


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


# --- Frame rate -------------------------------------------------------------------------
#
#     rate = 1 / mean of the steps between time stamps near their median, where most are; else 1 / mean of all steps
#
# Headers are wrong or empty in recordings of browsers and phones; players go by time stamps. These are rounded, so a
# rate within 0.2 % of the header's, or near a standard one, is taken for that rate.

MAX_FRAME_RATE = 240
"""Largest plausible rate; a higher one is a fault of the file, or slow motion, which players show at less."""

_STANDARD = [Fraction(rate) for rate in (24, 25, 30, 48, 50, 60, 100, 120, 240)]
_STANDARD += [Fraction(rate * 1000, 1001) for rate in (24, 30, 48, 60, 120)]
_NEAR_MEDIAN, _MOST_STEPS = 0.25, 0.75
_DECLARED_TOLERANCE = 0.002
_STANDARD_TOLERANCE = 0.0004


class FrameRate(NamedTuple):
    """Frames per second, on average where their times are uneven, and the number of frames."""

    fps: Fraction
    frames: int


def read_frame_rate(path: str | Path) -> FrameRate:
    """Return the rate and number of a video's frames, read from its packets without decoding them.

    It is 25 a second and a number of zero where the file does not state them.
    """
    try:
        with open_media(path) as container:
            stream = main_video_stream(container)
            if stream is None:
                return FrameRate(Fraction(FPS), 0)
            # Some containers store decoding times only.
            stamps = [packet.dts if packet.pts is None else packet.pts for packet in container.demux(stream)]
            times = sorted(stamp for stamp in stamps if stamp is not None)
            base, declared = stream.time_base, stream.average_rate
    except (av.FFmpegError, OSError):
        # The code that reads the pictures reports what is wrong with the file.
        return FrameRate(Fraction(FPS), 0)
    if len(times) < 2 or times[-1] == times[0]:
        return FrameRate(Fraction(declared or FPS), len(times))
    steps = np.diff(times)
    near_median = steps[np.abs(steps - np.median(steps)) <= _NEAR_MEDIAN * np.median(steps)]
    # A recorder that drops a frame now and then still has a constant rate.
    steps = near_median if len(near_median) >= _MOST_STEPS * len(steps) else steps
    measured = 1 / (Fraction(int(steps.sum()), len(steps)) * base)
    return FrameRate(_rounded_rate(measured, declared), len(times))


def _rounded_rate(measured: Fraction, declared: Fraction | None) -> Fraction:
    """Return the exact rate that a measured one stands for, since time stamps are rounded."""
    nearest = min(_STANDARD, key=lambda rate: abs(rate - measured))
    if abs(nearest - measured) < _STANDARD_TOLERANCE * measured:
        return nearest
    if declared and abs(declared - measured) < _DECLARED_TOLERANCE * measured and declared <= MAX_FRAME_RATE:
        return Fraction(declared)
    return min(measured, Fraction(MAX_FRAME_RATE)).limit_denominator(1001)


# --- Clips of other people, within limits -----------------------------------------------
#
# 35 kB of H.264 can hold gigabytes of pictures, and a header can lie:
#
#     packets counted and timed, nothing decoded ─► decoded frame by frame, the decoder itself refuses larger pictures
#
# ``read_clip`` never holds more than ``ClipLimits.decoded`` bytes of pictures, whatever the file declares.

_MOST_PACKETS = 500
"""Packets a second that are read of one stream; sound of 2.5 ms a packet has 400."""
_SLOWEST_SOUND = 4_000
"""Hz; a lower rate would turn a few bytes into hours."""


@dataclass(frozen=True)
class ClipLimits:
    """The limits of a clip.

    Attributes:
        seconds: its length.
        pixels: of one picture.
        decoded: bytes of all its pictures at 25 frames a second, RGB.
    """

    seconds: float
    pixels: int
    decoded: int


SERVER_CLIP_LIMITS = ClipLimits(seconds=120.0, pixels=3840 * 2160, decoded=2**30)
"""Limits of a clip that came over a network: 54 s of 512 px."""
LOCAL_CLIP_LIMITS = ClipLimits(seconds=3600.0, pixels=8192 * 4320, decoded=8 * 2**30)
"""Limits of a file on this computer that somebody else may have made."""


def iter_bounded_frames(path: Path, limits: ClipLimits = LOCAL_CLIP_LIMITS) -> Iterator[np.ndarray]:
    """Yield frames as ``iter_frames`` does; nothing is kept, so ``decoded`` does not count.

    Raises:
        BadInput: as ``iter_frames``, or the file exceeds the limits.
    """
    check_clip_limits(path, limits)
    for count, frame in enumerate(iter_frames(path, max_pixels=limits.pixels), 1):
        if count > limits.seconds * FPS + 1:
            raise _too_long_error(path, limits)
        yield frame


def read_clip(path: Path, limits: ClipLimits = LOCAL_CLIP_LIMITS) -> tuple[np.ndarray, np.ndarray | None]:
    """Return frames ``[T, H, W, 3]`` uint8 and sound ``[N]`` float32 at 16 kHz, None where there is no sound.

    Raises:
        BadInput: as ``iter_frames`` and ``read_audio``, the size of the picture changes on the way, or the file exceeds
            the limits.
    """
    frames: np.ndarray | None = None
    count = 0
    expected = round(check_clip_limits(path, limits) * FPS) + FPS
    for frame in iter_bounded_frames(path, limits):
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


def check_clip_limits(path: Path, limits: ClipLimits) -> float:
    """Return the seconds that a file lasts by its packets or by its header, whichever is more; nothing is decoded.

    Raises:
        BadInput: the file exceeds the limits. A file that cannot be opened at all is left to the code that decodes it.
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
            return _length_in_seconds(container, path, limits)
    except (av.FFmpegError, OSError):
        return limits.seconds


def _length_in_seconds(container: av.container.InputContainer, path: Path, limits: ClipLimits) -> float:
    streams = [*container.streams.video, *container.streams.audio]
    longest, counts, first = 0.0, dict.fromkeys((stream.index for stream in streams), 0), float("inf")
    for stream in streams:
        if stream.duration and stream.time_base:
            longest = max(longest, float(stream.duration * stream.time_base))
    if longest > limits.seconds + 1:
        raise _too_long_error(path, limits)
    last = -float("inf")
    for packet in container.demux(streams):
        counts[packet.stream_index] += 1
        moment = packet.dts if packet.pts is None else packet.pts
        if moment is not None and packet.time_base:
            begin = float(moment * packet.time_base)
            first, last = min(first, begin), max(last, begin + float((packet.duration or 0) * packet.time_base))
        if last - first > limits.seconds + 1 or max(counts.values()) > limits.seconds * _MOST_PACKETS:
            raise _too_long_error(path, limits)
    # Raw streams have no time stamps at all.
    return max(longest, last - first) if last >= first else limits.seconds


def _too_long_error(path: Path, limits: ClipLimits) -> BadInput:
    return BadInput(f"{path} lasts more than {limits.seconds:g} s, or claims to: cut it.")
