"""What holds for a media file as a whole: when it begins, and whether all of it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from av.stream import Disposition

from flowportrait.errors import BadInput


def origin(container: Any) -> float:
    """The moment an opened file begins in seconds: where its picture or its sound starts, whichever comes first.

    Picture and sound both count from here, so that a track that starts late stays where it belongs.
    """
    # The cover of a song is a video stream too, of one picture at time zero.
    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    played = [*videos[:1], *container.streams.audio[:1]]
    starts = [float(stream.start_time * stream.time_base) for stream in played if stream.start_time is not None]
    return min(starts, default=0.0)


def check_whole(container: Any, path: Path) -> None:
    """Compare the index of an opened file with its size.

    FFmpeg plays a file that was cut off to where it ends and reports nothing; a broken download would become a
    frozen picture.

    Raises:
        BadInput: the index names pictures or sound beyond the end of the file.
    """
    size = path.stat().st_size
    end = max((entry.pos + entry.size for stream in container.streams for entry in stream.index_entries), default=0)
    if end > size:
        raise BadInput(f"{path} is damaged, only {size / end:.0%} of it is there: copy or download it again.")
