"""A video into a fresh mp4, packet by packet: the very same pictures and sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av

from flowportrait.media.container import file_url


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
