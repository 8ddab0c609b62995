"""Write a GIF with one palette of 256 colours for the whole clip.

    frames ─► lossless file ─► palette ─► frames with the palette's colours, only what changes ─► gif + comment

A palette for each frame would flicker and make the file several times larger; holding all frames to find a common one
would take gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from flowportrait.media.containers import file_url

MAX_GIF_FPS = Fraction(50)
"""Largest number of frames per second: browsers play a delay of one hundredth of a second as ten."""
_HUNDREDTH = Fraction(1, 100)
_DITHER = "dither=bayer:bayer_scale=5:diff_mode=rectangle"
"""A fixed dither pattern: what does not move stays the same from frame to frame, and costs no bytes."""


Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""A function of items, their number, and what is being done, that yields the items and shows a progress bar, as
``terminal.progress`` does.
"""


def write_gif(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: Fraction,
    tags: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> int:
    """Write frames ``[H, W, 3]`` uint8 RGB, or ``[H, W, 4]`` with alpha, which a gif keeps as opaque or transparent.

    The delays are whole hundredths of a second that add up to the clip's duration; above 50 frames a second frames are
    dropped.

    Args:
        path: the file.
        frames: at least one.
        fps: frames per second.
        tags: metadata; a gif can hold only the comment.
        progress: shows the progress of the two passes that follow the last frame.

    Returns:
        How many frames came.
    """
    lossless = path.with_suffix(".nut")
    try:
        count = _write_lossless(lossless, frames, fps)
        show_progress = progress or (lambda items, total, doing: items)
        palette = _find_palette(lossless, lambda decoded: show_progress(decoded, count, "choosing colours"))
        _encode(path, lossless, palette, fps, count, lambda decoded: show_progress(decoded, count, "writing the gif"))
    finally:
        lossless.unlink(missing_ok=True)
    if comment := (tags or {}).get("comment"):
        _add_comment(path, comment)
    return count


def _write_lossless(path: Path, frames: Iterable[np.ndarray], fps: Fraction) -> int:
    count = 0
    stream: Any = None
    with av.open(file_url(path), "w", format="nut") as container:
        for image in frames:
            transparent = image.shape[2] == 4
            if stream is None:
                if transparent:
                    stream = container.add_stream("utvideo", rate=fps)
                else:
                    stream = container.add_stream("libx264rgb", rate=fps, options={"crf": "0", "preset": "ultrafast"})
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "gbrap" if transparent else "bgr24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgba" if transparent else "rgb24")
            frame.pts, frame.time_base = count, 1 / fps
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode())
    return count


def _find_palette(lossless: Path, show_progress: Callable[[Iterable[Any]], Iterable[Any]]) -> Any:
    """Return the picture of 16 by 16 colours that ``palettegen`` makes of all frames."""
    with av.open(file_url(lossless)) as source:
        stream = source.streams.video[0]
        graph = av.filter.Graph()
        transparent = int(stream.pix_fmt == "gbrap")
        generator = graph.add("palettegen", f"stats_mode=full:reserve_transparent={transparent}")
        entry, leave = graph.add_buffer(template=stream), graph.add("buffersink")
        entry.link_to(generator)
        generator.link_to(leave)
        graph.configure()
        for frame in show_progress(source.decode(stream)):
            entry.push(frame)
        entry.push(None)
        return leave.pull()


def _encode(
    path: Path,
    lossless: Path,
    palette: Any,
    fps: Fraction,
    count: int,
    show_progress: Callable[[Iterable[Any]], Iterable[Any]],
) -> None:
    step = -(-fps // MAX_GIF_FPS)
    last = (count - 1) // step * step
    options = {"final_delay": str(_hundredths(count, fps) - _hundredths(last, fps))}
    with (
        av.open(file_url(lossless)) as source,
        av.open(file_url(path), "w", format="gif", options=options) as container,
    ):
        source_stream = source.streams.video[0]
        stream = container.add_stream("gif", rate=100)
        stream.height, stream.width, stream.pix_fmt = source_stream.height, source_stream.width, "pal8"
        stream.codec_context.time_base = _HUNDREDTH
        graph = av.filter.Graph()
        pictures = graph.add_buffer(template=source_stream)
        colours = graph.add_buffer(
            width=palette.width, height=palette.height, format=palette.format, time_base=source_stream.time_base
        )
        use, leave = graph.add("paletteuse", _DITHER), graph.add("buffersink")
        pictures.link_to(use, 0, 0)
        colours.link_to(use, 0, 1)
        use.link_to(leave)
        graph.configure()
        colours.push(palette)
        colours.push(None)
        selected = (
            frame for index, frame in enumerate(show_progress(source.decode(source_stream))) if index % step == 0
        )
        written = 0
        for frame in chain(selected, [None]):
            pictures.push(frame)
            for done in _finished_frames(leave):
                done.pts, done.time_base = _hundredths(written * step, fps), _HUNDREDTH
                container.mux(stream.encode(done))
                written += 1
        container.mux(stream.encode())


def _hundredths(index: int, fps: Fraction) -> int:
    """Return when frame ``index`` is shown, in hundredths of a second."""
    return round(index / fps * 100)


def _finished_frames(sink: Any) -> Iterator[Any]:
    """Yield the frames that a filter graph has finished."""
    while True:
        try:
            yield sink.pull()
        except (av.BlockingIOError, av.EOFError):
            return


def _add_comment(path: Path, text: str) -> None:
    """Insert a comment block (GIF89a, section 24) behind the header of a gif."""
    data = path.read_bytes()
    flags = data[10]
    header = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    words = text.encode()
    blocks = [words[start : start + 255] for start in range(0, len(words), 255)]
    comment = b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
    path.write_bytes(data[:header] + comment + data[header:])
