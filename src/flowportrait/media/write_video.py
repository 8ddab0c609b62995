"""Write videos: RGB frames and their sound to mp4, mov, webm or gif; a file is complete under its name or absent.

    R'G'B' full range ─► Y'CbCr, matrix BT.709, Y' 16 to 235, 4:2:0 ─► H.264 or VP9, tagged bt709 / bt709 / bt709 / tv

The pictures are converted and tagged as BT.709 whatever their size: players guess the matrix of an untagged video from
its height, and not all guess alike.
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
import cv2
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter

from flowportrait.errors import BadInput
from flowportrait.files import check_parent_folder
from flowportrait.media.audio import SAMPLE_RATE, Sound
from flowportrait.media.containers import file_url
from flowportrait.media.formats import OutputFormat, output_format
from flowportrait.media.sound_track import add_sound_track
from flowportrait.media.video import FPS
from flowportrait.media.write_gif import Progress, write_gif

# --- The pictures of a video ------------------------------------------------------------

# Chroma is averaged from every pixel of a row, not from every second one.
_SCALING = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INP
_VP9_CRF = 10
"""Difference between the quality scales for about the same PSNR: VP9 counts from 0 to 63, H.264 from 0 to 51."""


class VideoTrack:
    """The video stream of a container that is being written."""

    def __init__(
        self,
        container: Any,
        codec: str,
        fps: Fraction,
        crf: int,
        shape: tuple[int, ...],
        options: Mapping[str, str] | None = None,
    ) -> None:
        """Add the stream to a container.

        Args:
            container: an open ``av`` output container into which nothing was muxed yet.
            codec: ``libx264`` or ``libvpx-vp9``.
            fps: frames per second.
            crf: quality on the scale of H.264; for VP9 it is converted.
            shape: of the first frame ``[H, W, 3]``, or ``[H, W, 4]`` with alpha (VP9 only).
            options: further options of the encoder.

        Raises:
            BadInput: a side has less than 2 px, or more than the codec supports.
        """
        check_frame_size(shape)
        self._container, self._fps, self._shape = container, fps, shape
        self.count = 0
        encoder_options = _encoder_options(codec, crf, shape) | dict(options or {})
        self._stream = container.add_stream(codec, rate=fps, options=encoder_options)
        self._stream.height, self._stream.width = (side // 2 * 2 for side in shape[:2])
        self._stream.pix_fmt = "yuva420p" if shape[2] == 4 else "yuv420p"
        context = self._stream.codec_context
        context.time_base = 1 / fps
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        self._reformatter = VideoReformatter()

    def write(self, frame: np.ndarray) -> None:
        """Encode the next frame, uint8 of the first one's shape; odd sides lose their last pixel.

        Raises:
            ValueError: the frame has another shape.
        """
        self._container.mux(self._stream.encode(self._convert(frame)))
        self.count += 1

    def close(self) -> None:
        """Write the frames that the encoder still holds."""
        self._container.mux(self._stream.encode())

    def _convert(self, image: np.ndarray) -> Any:
        if image.shape != self._shape:
            (height, width, *_), (first_height, first_width, *_) = image.shape, self._shape
            raise ValueError(f"frame {self.count} is {width}x{height}, not {first_width}x{first_height}")
        even = np.ascontiguousarray(image[: self._stream.height, : self._stream.width])
        if self._shape[2] == 4:
            frame = self._reformatter.reformat(
                av.VideoFrame.from_ndarray(even, format="rgba"), format=self._stream.pix_fmt,
                dst_colorspace=Colorspace.ITU709, interpolation=_SCALING,
                src_color_range=ColorRange.JPEG, dst_color_range=ColorRange.MPEG,
            )  # fmt: skip
        else:
            frame = av.VideoFrame.from_ndarray(_to_yuv420(even), format="yuv420p")
            frame.colorspace, frame.color_range = Colorspace.ITU709, ColorRange.MPEG
        # The pictures are sRGB; BT.709's curve is what browsers and players show as sRGB.
        frame.color_primaries, frame.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        frame.pts, frame.time_base = self.count, 1 / self._fps
        return frame


_TO_YUV = np.array([[0.2126, 0.7152, 0.0722], [-0.2126, -0.7152, 0.9278], [0.7874, -0.7152, -0.0722]])
_TO_YUV *= (np.array([219, 224 / 1.8556, 224 / 1.5748]) / 255)[:, None]
_TO_YUV = np.column_stack([_TO_YUV, [16, 128, 128]])
"""Matrix ``[3, 4]`` from R'G'B' to Y'CbCr of BT.709 in the limited range, both in levels of 8 bits."""


def _to_yuv420(image: np.ndarray) -> np.ndarray:
    """Return the planes Y', Cb and Cr ``[3 H / 2, W]`` of a picture ``[H, W, 3]`` uint8 with even sides.

    Chroma is the mean of four pixels, as FFmpeg's scaler places it; that takes three times as long.
    """
    height, width = image.shape[:2]
    planes = np.empty((height * 3 // 2, width), np.uint8)
    luma, *chroma = cv2.split(cv2.transform(image, _TO_YUV))
    planes[:height] = luma
    for plane, full in zip(planes[height:].reshape(2, height // 2, width // 2), chroma, strict=True):
        cv2.resize(full, (width // 2, height // 2), dst=plane, interpolation=cv2.INTER_AREA)
    return planes


def check_frame_size(shape: tuple[int, ...]) -> None:
    """Check that frames of this shape ``[H, W, …]`` can be a video.

    Raises:
        BadInput: a side has less than 2 px.
    """
    if min(shape[:2]) < 2:
        raise BadInput(f"A frame of {shape[1]}x{shape[0]} px is too small for a video: 2x2 at least.")


_ONE_THREAD_PIXELS = 1 << 20
"""Pixels of a frame up to which H.264 is encoded by the calling thread, which is several times as fast as drawing."""


def _encoder_options(codec: str, crf: int, shape: tuple[int, ...]) -> dict[str, str]:
    if codec == "libx264":
        # "veryfast" with a simpler motion search, for blocks of 8 px and more: the same bit rate within 2 % and 0.1 dB
        # less. Threads that wait for each other cost a tenth more, and with them the bits are not always the same.
        options = {"crf": str(crf), "preset": "veryfast", "x264-params": "me=dia:partitions=p8x8,i4x4,i8x8"}
        return options | ({"threads": "1"} if shape[0] * shape[1] <= _ONE_THREAD_PIXELS else {})
    # Without a bit rate of zero crf would only be an upper limit. "realtime" at speed 6 takes about as long as H.264.
    return {
        "crf": str(min(63, crf + _VP9_CRF)), "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1",
        "auto-alt-ref": "0",
    }  # fmt: skip


def remux_to_mp4(source: Any, tracks: Sequence[Any], target: Path, tags: Mapping[str, str] | None = None) -> None:
    """Copy ``tracks`` of an opened container unchanged into an mp4 that plays before it is loaded completely.

    Args:
        source: the opened container.
        tracks: its streams to copy.
        target: path of the mp4.
        tags: the only metadata that the new file has.

    Raises:
        av.FFmpegError, OSError: as reading and writing do.
    """
    options = {"movflags": "+faststart"}
    with av.open(file_url(target), "w", format="mp4", options=options) as output:
        output.metadata.update(tags or {})
        streams = {track.index: output.add_stream_from_template(track) for track in tracks}
        for stream in streams.values():
            stream.metadata.clear()
        for packet in source.demux(*tracks):
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                output.mux(packet)


# --- Whole videos -----------------------------------------------------------------------


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
    that are not numbers become silence, louder ones than full scale are clipped. The file is first written beside its
    name under a temporary one, so it is complete when it appears.

    Args:
        path: ends in ``.mp4``, ``.mov``, ``.webm`` or ``.gif``.
        frames: ``[H, W, 3]`` uint8 RGB; odd sides lose a pixel. ``[H, W, 4]`` with alpha for webm and gif.
        sound: a file, whose packets are copied where the format supports them; samples ``[N]`` mono at 16 kHz; None.
        fps: frames per second.
        crf: quality on the scale of H.264, lower is better.
        tags: container metadata (``title``, ``comment``, …).
        finish: called with the complete file under its temporary name, to sign it for example.
        frame_total: the number of frames, where it is known: without it no packets are copied.
        progress: shows what is left to do after the last frame, for a gif (``terminal.progress``).

    Returns:
        How many frames were written.

    Raises:
        BadInput: the folder does not exist or cannot be written, the suffix is unknown, the sound cannot be read, or
            the frames are under 2 × 2 px.
    """
    path, rate = Path(path), Fraction(fps).limit_denominator(100_000)
    form = output_format(path)
    if isinstance(sound, np.ndarray):
        sound = Sound(sound[None], SAMPLE_RATE, "mono")
    remaining = iter(frames)
    with _replace_when_complete(path) as partial:
        first = next(remaining, None)
        if first is None:
            raise ValueError("a video needs at least one frame")
        check_frame_size(first.shape)
        if first.shape[2] == 4 and not form.transparent:
            raise ValueError(f"{form.suffix} holds no transparent pictures")
        checked_frames = _while_file_exists(chain([first], remaining), partial, path)
        if form.muxer == "gif":
            count = write_gif(partial, checked_frames, rate, tags, progress)
        else:
            seconds = None if frame_total is None else float(frame_total / rate)
            count = _write_container(partial, form, checked_frames, first.shape, sound, rate, crf, tags, seconds)
        if finish is not None:
            finish(partial)
    return count


NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the file system or a limit allows",
}
"""Errors of writing that more room or another place mends."""


@contextmanager
def _replace_when_complete(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path`` to write to; it is renamed to ``path`` when the block ends well, else removed.

    Raises:
        BadInput: the system does not accept the name, or the disk is full.
    """
    check_parent_folder(path)
    # Short for names of any length, and unique among processes that write at once.
    partial = path.with_name(f".{secrets.token_hex(6)}.partial{path.suffix.lower()}")
    _check_names(path, partial)
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if not path.parent.is_dir():
            raise _folder_removed(path) from error
        if error.errno not in NO_ROOM:
            raise
        raise BadInput(f"Cannot write {path}: {NO_ROOM[error.errno]}; make room or choose another --output.") from error
    finally:
        partial.unlink(missing_ok=True)


def _while_file_exists(frames: Iterable[np.ndarray], partial: Path, path: Path) -> Iterator[np.ndarray]:
    """Yield the frames while the file that they are written to exists: the rest would be drawn for nothing."""
    for frame in frames:
        if not partial.exists():
            raise _folder_removed(path)
        yield frame


def _folder_removed(path: Path) -> BadInput:
    return BadInput(f"Cannot write {path}: its folder was removed meanwhile; create it and start again.")


def _check_names(path: Path, partial: Path) -> None:
    # FFmpeg would report an unusable name only with the first frame.
    """Check that both names can be created: FFmpeg opens its file only with the first frame."""
    try:
        if path.is_dir():
            raise BadInput(f"Cannot write {path}, it is a folder: choose another --output.")
        if not path.exists():
            path.touch()
            path.unlink()
        partial.touch()
    except OSError as error:
        raise BadInput(f"Cannot write {path} ({error.strerror}): choose another --output.") from error


def _write_container(
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
        pictures = VideoTrack(container, form.video_codec, fps, crf, shape)
        track = None if sound is None else add_sound_track(container, form, sound, seconds)
        for frame in frames:
            pictures.write(frame)
            if track is not None:
                track.write_until(pictures.count / fps)
        pictures.close()
        if track is not None:
            track.close(pictures.count / fps)
    return pictures.count
