"""Video files out: RGB frames and their sound to H.264 + AAC, complete under its name or not there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.video import FPS


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
