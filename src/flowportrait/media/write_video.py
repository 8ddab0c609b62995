"""Video files out: frames and sound to mp4, mov or webm.

The pictures of a video: RGB frames to one encoded stream, converted and tagged as BT.709 whatever their size.

    R'G'B' full range ─► Y'CbCr, matrix BT.709, Y' 16 to 235, 4:2:0 ─► H.264 or VP9, tagged bt709 / bt709 / bt709 / tv

Players guess the matrix of an untagged video from its height, and not all guess alike: so the stream says it.

A video into a fresh mp4, packet by packet: the very same pictures and sound.

Video files out: RGB frames and their sound to mp4, mov, webm or gif, complete under its name or not there.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter

from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE, Sound
from flowportrait.media.containers import file_url
from flowportrait.media.formats import OutputFormat, output_format
from flowportrait.media.sound_track import sound_track
from flowportrait.media.video import FPS
from flowportrait.media.write_gif import Progress, write_gif

# Chroma is averaged from every pixel of a row, not from every second one.
_SCALING = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INP
_VP9_CRF = 10
"""VP9 counts its quality from 0 to 63, H.264 from 0 to 51: about this much more for the same PSNR."""


class PictureTrack:
    """One video stream of an open container."""

    def __init__(
        self,
        container: Any,
        codec: str,
        fps: Fraction,
        crf: int,
        shape: tuple[int, ...],
        options: Mapping[str, str] | None = None,
    ) -> None:
        """Add the stream.

        Args:
            container: an open ``av`` output container into which nothing was muxed yet.
            codec: ``libx264`` or ``libvpx-vp9``.
            fps: frames per second.
            crf: quality as H.264 counts it; for VP9 it is converted.
            shape: of the first frame ``[H, W, 3]``, or ``[H, W, 4]`` with alpha (VP9 only).
            options: the encoder's, on top of these.

        Raises:
            BadInput: a side has less than 2 px, or more than the codec takes.
        """
        check_frame_size(shape)
        self._container, self._fps, self._shape = container, fps, shape
        self.count = 0
        given = _encoder_options(codec, crf) | dict(options or {})
        self._stream = container.add_stream(codec, rate=fps, options=given)
        self._stream.height, self._stream.width = (side // 2 * 2 for side in shape[:2])
        self._stream.pix_fmt = "yuva420p" if shape[2] == 4 else "yuv420p"
        context = self._stream.codec_context
        context.time_base = 1 / fps
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        self._reformatter = VideoReformatter()

    def write(self, frame: np.ndarray) -> None:
        """Encode the next frame, of the first one's shape, uint8; odd sides lose their last pixel.

        Raises:
            ValueError: another shape.
        """
        self._container.mux(self._stream.encode(self._converted(frame)))
        self.count += 1

    def close(self) -> None:
        """Write what the encoder still holds."""
        self._container.mux(self._stream.encode())

    def _converted(self, image: np.ndarray) -> Any:
        if image.shape != self._shape:
            (height, width, *_), (first_height, first_width, *_) = image.shape, self._shape
            raise ValueError(f"frame {self.count} is {width}x{height}, not {first_width}x{first_height}")
        even = np.ascontiguousarray(image[: self._stream.height, : self._stream.width])
        rgb = av.VideoFrame.from_ndarray(even, format="rgba" if self._shape[2] == 4 else "rgb24")
        frame = self._reformatter.reformat(
            rgb, format=self._stream.pix_fmt, dst_colorspace=Colorspace.ITU709, interpolation=_SCALING,
            src_color_range=ColorRange.JPEG, dst_color_range=ColorRange.MPEG,
        )  # fmt: skip
        # The pictures are sRGB; BT.709's curve is what browsers and players show as sRGB.
        frame.color_primaries, frame.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        frame.pts, frame.time_base = self.count, 1 / self._fps
        return frame


def check_frame_size(shape: tuple[int, ...]) -> None:
    """That frames of this shape ``[H, W, …]`` make a video.

    Raises:
        BadInput: a side has less than 2 px.
    """
    if min(shape[:2]) < 2:
        raise BadInput(f"A frame of {shape[1]}x{shape[0]} px is too small for a video: 2x2 at least.")


def _encoder_options(codec: str, crf: int) -> dict[str, str]:
    if codec == "libx264":
        return {"crf": str(crf), "preset": "veryfast"}
    # Without a bit rate of zero crf would only be an upper limit. "realtime" at speed 6 takes about as long as H.264.
    return {
        "crf": str(min(63, crf + _VP9_CRF)), "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1",
        "auto-alt-ref": "0",
    }  # fmt: skip


def remux(given: Any, tracks: Sequence[Any], target: Path, tags: Mapping[str, str] | None = None) -> None:
    """Copy ``tracks`` of an opened container into an mp4 at ``target`` that begins to play before it is loaded.

    tags: the only metadata that it has.

    Raises:
        av.FFmpegError, OSError: as reading and writing do.
    """
    options = {"movflags": "+faststart"}
    with av.open(file_url(target), "w", format="mp4", options=options) as fresh:
        fresh.metadata.update(tags or {})
        streams = {track.index: fresh.add_stream_from_template(track) for track in tracks}
        for stream in streams.values():
            stream.metadata.clear()
        for packet in given.demux(*tracks):
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                fresh.mux(packet)


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
    """Write frames and their sound in the format that the name asks for (see ``media.formats``).

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
