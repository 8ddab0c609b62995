"""GIF out: one palette of 256 colours for the whole clip.

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

FASTEST = Fraction(50)
"""Frames a second at most: browsers take a delay of one hundredth for ten."""
_HUNDREDTH = Fraction(1, 100)
_USE = "dither=bayer:bayer_scale=5:diff_mode=rectangle"
"""A dither that stands still: what does not move stays the same from frame to frame, and costs nothing."""


Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Shows how far one is with items, their number, and what is being done, as ``terminal.progress`` does."""


def write_gif(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: Fraction,
    tags: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> int:
    """Write frames ``[H, W, 3]`` uint8 RGB, or ``[H, W, 4]`` with alpha: a gif keeps whether it is half or more.

    The delays are whole hundredths of a second that add up to the clip's duration; above 50 frames a second frames are
    left out. The comment among the tags is kept, other tags have no place in a gif. progress: shows how far the two
    passes are that follow the last frame.

    Returns:
        How many frames came.
    """
    store = path.with_suffix(".nut")
    try:
        count = _store(store, frames, fps)
        watched = progress or (lambda items, total, doing: items)
        palette = _find_palette(store, lambda decoded: watched(decoded, count, "choosing colours"))
        _encode(path, store, palette, fps, count, lambda decoded: watched(decoded, count, "writing the gif"))
    finally:
        store.unlink(missing_ok=True)
    if comment := (tags or {}).get("comment"):
        _add_comment(path, comment)
    return count


def _store(path: Path, frames: Iterable[np.ndarray], fps: Fraction) -> int:
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


def _find_palette(store: Path, watched: Callable[[Iterable[Any]], Iterable[Any]]) -> Any:
    """The picture of 16 by 16 colours that ``palettegen`` makes of all frames."""
    with av.open(file_url(store)) as source:
        stream = source.streams.video[0]
        graph = av.filter.Graph()
        transparent = int(stream.pix_fmt == "gbrap")
        generator = graph.add("palettegen", f"stats_mode=full:reserve_transparent={transparent}")
        entry, leave = graph.add_buffer(template=stream), graph.add("buffersink")
        entry.link_to(generator)
        generator.link_to(leave)
        graph.configure()
        for frame in watched(source.decode(stream)):
            entry.push(frame)
        entry.push(None)
        return leave.pull()


def _encode(
    path: Path,
    store: Path,
    palette: Any,
    fps: Fraction,
    count: int,
    watched: Callable[[Iterable[Any]], Iterable[Any]],
) -> None:
    step = -(-fps // FASTEST)
    last = (count - 1) // step * step
    options = {"final_delay": str(_hundredths(count, fps) - _hundredths(last, fps))}
    with av.open(file_url(store)) as source, av.open(file_url(path), "w", format="gif", options=options) as container:
        given = source.streams.video[0]
        stream = container.add_stream("gif", rate=100)
        stream.height, stream.width, stream.pix_fmt = given.height, given.width, "pal8"
        stream.codec_context.time_base = _HUNDREDTH
        graph = av.filter.Graph()
        pictures = graph.add_buffer(template=given)
        colours = graph.add_buffer(
            width=palette.width, height=palette.height, format=palette.format, time_base=given.time_base
        )
        use, leave = graph.add("paletteuse", _USE), graph.add("buffersink")
        pictures.link_to(use, 0, 0)
        colours.link_to(use, 0, 1)
        use.link_to(leave)
        graph.configure()
        colours.push(palette)
        colours.push(None)
        wanted = (frame for index, frame in enumerate(watched(source.decode(given))) if index % step == 0)
        written = 0
        for frame in chain(wanted, [None]):
            pictures.push(frame)
            for done in _ready(leave):
                done.pts, done.time_base = _hundredths(written * step, fps), _HUNDREDTH
                container.mux(stream.encode(done))
                written += 1
        container.mux(stream.encode())


def _hundredths(index: int, fps: Fraction) -> int:
    """When frame ``index`` is shown, in hundredths of a second."""
    return round(index / fps * 100)


def _ready(sink: Any) -> Iterator[Any]:
    """The frames that a filter graph has finished."""
    while True:
        try:
            yield sink.pull()
        except (av.BlockingIOError, av.EOFError):
            return


def _add_comment(path: Path, text: str) -> None:
    """Put a comment block (GIF89a, section 24) behind the header of a gif."""
    data = path.read_bytes()
    flags = data[10]
    header = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    words = text.encode()
    blocks = [words[start : start + 255] for start in range(0, len(words), 255)]
    comment = b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
    path.write_bytes(data[:header] + comment + data[header:])
