"""Video files out: RGB frames and their sound to mp4, mov, webm or gif, complete under its name or not there."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE, Sound
from flowportrait.media.container import file_url
from flowportrait.media.output_formats import OutputFormat, output_format
from flowportrait.media.picture_track import PictureTrack, check_frame_size
from flowportrait.media.sound_track import sound_track
from flowportrait.media.video import FPS
from flowportrait.media.write_gif import Progress, write_gif


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    sound: Path | Sound | np.ndarray | None,
    fps: Fraction | float = FPS,
    crf: int = 17,
    tags: Mapping[str, str] | None = None,
    finish: Callable[[Path], None] | None = None,
    frame_total: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write frames and their sound in the format that the name asks for (see ``media.output_formats``).

    The sound keeps its rate and channels. It is cut or padded with silence to exactly ``frames / fps`` seconds; samples
    that are not numbers become silence, louder ones than full scale are cut to it. The file appears under its name only
    when complete: it is written beside it under a temporary name first.

    Args:
        path: ends in ``.mp4``, ``.mov``, ``.webm`` or ``.gif``.
        frames: ``[H, W, 3]`` uint8 RGB; odd sides lose a pixel. ``[H, W, 4]`` with alpha for webm and gif.
        sound: a file, whose packets are copied where the format takes them; samples ``[N]`` mono at 16 kHz; None.
        fps: frames per second.
        crf: quality as H.264 counts it, lower is better.
        tags: container metadata (``title``, ``comment``, …).
        finish: called with the complete file under its temporary name, to sign it for example.
        frame_total: how many frames come, where that is known: without it no packets are copied.
        progress: shows what still has to be done after the last frame, for a gif (``terminal.progress``).

    Returns:
        How many frames were written.

    Raises:
        BadInput: the folder does not exist or cannot be written, the ending is unknown, the sound cannot be read, or
            the frames are under 2 × 2 px.
    """
    path, rate = Path(path), Fraction(fps).limit_denominator(100_000)
    form = output_format(path)
    if isinstance(sound, np.ndarray):
        sound = Sound(sound[None], SAMPLE_RATE, "mono")
    coming = iter(frames)
    with _completed(path) as partial:
        first = next(coming, None)
        if first is None:
            raise ValueError("a video needs at least one frame")
        check_frame_size(first.shape)
        if first.shape[2] == 4 and not form.transparent:
            raise ValueError(f"{form.suffix} holds no transparent pictures")
        given = _watched(chain([first], coming), partial, path)
        if form.muxer == "gif":
            count = write_gif(partial, given, rate, tags, progress)
        else:
            seconds = None if frame_total is None else float(frame_total / rate)
            count = _write(partial, form, given, first.shape, sound, rate, crf, tags, seconds)
        if finish is not None:
            finish(partial)
    return count


@contextmanager
def _completed(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to, which becomes ``path`` when the block ends well and goes when it does not.

    Raises:
        BadInput: the system does not take the name, or the disk is full.
    """
    if not path.parent.is_dir():
        raise BadInput(f"Cannot write {path}: the folder {path.parent} does not exist; create it first.")
    # Short, and of one's own, whatever the name and however many write at once.
    partial = path.with_name(f".{secrets.token_hex(6)}.partial{path.suffix.lower()}")
    _claim(path, partial)
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if not path.parent.is_dir():
            raise _removed(path) from error
        if error.errno != errno.ENOSPC:
            raise
        raise BadInput(f"Cannot write {path}: the disk is full; make room or choose another --output.") from error
    finally:
        partial.unlink(missing_ok=True)


def _watched(frames: Iterable[np.ndarray], partial: Path, path: Path) -> Iterator[np.ndarray]:
    """The frames, for as long as the file that they are written to is there: the rest would be drawn for nothing."""
    for frame in frames:
        if not partial.exists():
            raise _removed(path)
        yield frame


def _removed(path: Path) -> BadInput:
    return BadInput(f"Cannot write {path}: its folder was removed meanwhile; create it and start again.")


def _claim(path: Path, partial: Path) -> None:
    # FFmpeg opens its file only with the first frame; what the system has against the names shows here.
    try:
        if path.is_dir():
            raise BadInput(f"Cannot write {path}, it is a folder: choose another --output.")
        if not path.exists():
            path.touch()
            path.unlink()
        partial.touch()
    except OSError as error:
        raise BadInput(f"Cannot write {path} ({error.strerror}): choose another --output.") from error


def _write(
    path: Path,
    form: OutputFormat,
    frames: Iterable[np.ndarray],
    shape: tuple[int, ...],
    sound: Path | Sound | None,
    fps: Fraction,
    crf: int,
    tags: Mapping[str, str] | None,
    seconds: float | None,
) -> int:
    # The index goes to the beginning: a browser plays the file before it has loaded all of it. QuickTime's own tags
    # have no keywords.
    flags = {"mp4": "+faststart", "mov": "+faststart+use_metadata_tags"}
    options = {"movflags": flags[form.muxer]} if form.muxer in flags else {}
    with av.open(file_url(path), "w", format=form.muxer, options=options) as container:
        container.metadata.update(tags or {})
        pictures = PictureTrack(container, form.video_codec, fps, crf, shape)
        track = None if sound is None else sound_track(container, form, sound, seconds)
        for frame in frames:
            pictures.write(frame)
            if track is not None:
                track.write_until(pictures.count / fps)
        pictures.close()
        if track is not None:
            track.close(pictures.count / fps)
    return pictures.count
