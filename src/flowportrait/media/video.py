"""Video files in: any container to 25 fps RGB.

Inside the package every clip has 25 frames a second and 16 kHz mono audio. The conversion happens here, once,
by presentation time: frame ``i`` of a clip is the source frame that was on screen at ``i / 25`` seconds after the
file's first picture or sound, whichever comes first; ``read_audio`` counts from the same moment.
"""

from __future__ import annotations

from collections.abc import Generator
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
