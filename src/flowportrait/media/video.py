"""Video files in and out: any container to 25 fps RGB, and back to H.264 + AAC.

Inside the package every clip has 25 frames a second and 16 kHz mono audio. The conversion happens here, once,
by presentation time: frame ``i`` of a clip is the source frame that was on screen at ``i / 25`` seconds after the
file's first picture or sound, whichever comes first; ``read_audio`` counts from the same moment.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.container import check_length, check_whole, origin

FPS = 25
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS


def iter_frames(path: str | Path, fps: int = FPS) -> Generator[np.ndarray, None, None]:
    """Yield RGB frames ``[H, W, 3]`` uint8 resampled in time to ``fps``.

    Raises:
        BadInput: the file is missing, empty, is not a video, is cut off, or holds frames that cannot be decoded.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"No video file at {path}: check the path.")
    check_length(path)
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        reason = _reason(error)
        raise BadInput(f"{path} cannot be opened as a video ({reason}): give an mp4, mov, webm or avi file.") from error
    with container:
        if not container.streams.video:
            raise BadInput(f"{path} holds no video stream: give a file with pictures.")
        check_whole(container, path)
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        emitted, last, start = 0, None, origin(container)
        try:
            for frame in container.decode(stream):
                time = float(frame.time) if frame.time is not None else start + emitted / fps
                # Everything due before this frame appears shows the previous one.
                if last is not None and emitted / fps < time - start - 0.5 / fps:
                    shown = upright(last)
                    while emitted / fps < time - start - 0.5 / fps:
                        yield shown
                        emitted += 1
                last = frame
        except av.FFmpegError as error:
            reason = f"{_reason(error)} at {emitted / fps:.1f} s"
            raise BadInput(f"{path} is damaged ({reason}): give a video that plays to its end.") from error
        if last is None:
            raise BadInput(f"{path} holds no decodable frame: give another file.")
        shown, length = upright(last), _end_time(stream, start)
        yield shown
        emitted += 1
        while emitted / fps < length - 0.5 / fps:
            yield shown
            emitted += 1


def upright(frame: Any) -> np.ndarray:
    """RGB pixels of a decoded frame with the display rotation (phone footage) applied."""
    image = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _end_time(stream: Any, start: float) -> float:
    if stream.duration is None or stream.time_base is None:
        return 0.0
    first = float((stream.start_time or 0) * stream.time_base)
    return first + float(stream.duration * stream.time_base) - start


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    audio: np.ndarray | None,
    fps: int = FPS,
    crf: int = 17,
    audio_rate: int = SAMPLE_RATE,
    tags: Mapping[str, str] | None = None,
    finish: Callable[[Path], None] | None = None,
) -> int:
    """Write frames (``[H, W, 3]`` uint8 RGB; odd sides lose a pixel) and mono audio; return how many frames.

    H.264 and AAC in mp4. The audio is cut or padded with silence to exactly ``frames / fps`` seconds; samples that
    are not numbers become silence, louder ones than full scale are cut to it. The file appears under its name only
    when complete: it is written beside it under a temporary name first.

    tags: container metadata (``title``, ``comment``, …). finish: called with the complete file under its temporary
    name, to sign it for example.

    Raises:
        BadInput: the folder does not exist or cannot be written, or the frames are under 2 × 2 px.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise BadInput(f"Cannot write {path}: the folder {path.parent} does not exist; create it first.")
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial.mp4")
    _claim(partial, path)
    try:
        with av.open(str(partial), "w", options={"movflags": "+faststart"}) as container:
            container.metadata.update(tags or {})
            count = _mux(container, frames, audio, fps, crf, audio_rate)
        if finish is not None:
            finish(partial)
        os.replace(partial, path)
    except IsADirectoryError as error:
        raise BadInput(f"Cannot write {path}, it is a folder: choose another --output.") from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise BadInput(f"Cannot write {path}: the disk is full; make room or choose another --output.") from error
    finally:
        partial.unlink(missing_ok=True)
    return count


def _claim(partial: Path, wanted: Path) -> None:
    # FFmpeg opens its file only with the first frame; what the system has against the name shows here.
    try:
        partial.touch()
    except OSError as error:
        raise BadInput(f"Cannot write {wanted} ({error.strerror}): choose another --output.") from error


def _mux(container: Any, frames: Iterable[np.ndarray], audio: np.ndarray | None, fps: int, crf: int, rate: int) -> int:
    video = sound = None
    count = 0
    for given in frames:
        # H.264 with 4:2:0 colour needs even sides.
        image = given[: given.shape[0] // 2 * 2, : given.shape[1] // 2 * 2]
        if min(image.shape[:2]) < 2:
            raise BadInput(f"A frame of {given.shape[1]}x{given.shape[0]} px is too small for a video: 2x2 at least.")
        if video is not None and image.shape[:2] != (video.height, video.width):
            raise ValueError(f"frame {count} is {image.shape[1]}x{image.shape[0]}, not {video.width}x{video.height}")
        if video is None:
            video = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": "veryfast"})
            video.height, video.width = image.shape[:2]
            video.pix_fmt = "yuv420p"
            video.codec_context.time_base = Fraction(1, fps)
            if audio is not None:
                sound = container.add_stream("aac", rate=rate, layout="mono", bit_rate=128_000)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = count, Fraction(1, fps)
        container.mux(video.encode(frame))
        count += 1
    if video is None:
        raise ValueError("a video needs at least one frame")
    container.mux(video.encode())
    if audio is not None and sound is not None:
        wave = np.zeros(round(count * rate / fps), np.float32)
        heard = np.nan_to_num(audio[: len(wave)], posinf=0.0, neginf=0.0)
        wave[: len(heard)] = heard.clip(-1.0, 1.0)
        for start in range(0, len(wave), 1024):
            block = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = rate, start, Fraction(1, rate)
            container.mux(sound.encode(block))
        container.mux(sound.encode())
    return count
