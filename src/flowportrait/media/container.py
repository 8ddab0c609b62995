"""What holds for a media file as a whole: when it begins, and whether all of it is there.

FFmpeg plays a file that was cut off to where it ends and reports nothing: a broken download would become a frozen
picture, half a recording half a video. So the length a file claims is compared with the length it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from av.stream import Disposition

from flowportrait.errors import BadInput

STREAMED = 0x7FFF_0000
"""Recorders that write to a pipe put a length of about two or four gigabytes into the header of a wav file."""


def origin(container: Any) -> float:
    """The moment an opened file begins in seconds: where its picture or its sound starts, whichever comes first.

    Picture and sound both count from here, so that a track that starts late stays where it belongs.
    """
    # The cover of a song is a video stream too, of one picture at time zero.
    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    played = [*videos[:1], *container.streams.audio[:1]]
    starts = [float(stream.start_time * stream.time_base) for stream in played if stream.start_time is not None]
    return min(starts, default=0.0)


def check_length(path: Path) -> None:
    """Compare the length a file's outermost boxes claim with the length it has, before it is opened.

    Raises:
        BadInput: it is empty, or ends before it says it does.
    """
    size = path.stat().st_size
    if size == 0:
        raise BadInput(f"{path} is empty (0 bytes): copy or download it again.")
    with path.open("rb") as file:
        claimed = _claimed_length(file, size)
    # Some recorders miscount their header by a few bytes; nothing audible is lost there.
    if claimed > size * 1.01:
        raise BadInput(f"{path} is damaged, only {size / claimed:.0%} of it is there: copy or download it again.")


def check_whole(container: Any, path: Path) -> None:
    """Compare the index of an opened file with its size.

    Raises:
        BadInput: the index names pictures or sound beyond the end of the file.
    """
    size = path.stat().st_size
    end = max((entry.pos + entry.size for stream in container.streams for entry in stream.index_entries), default=0)
    if end > size:
        raise BadInput(f"{path} is damaged, only {size / end:.0%} of it is there: copy or download it again.")


def _claimed_length(file: BinaryIO, size: int) -> int:
    """Bytes the file says it has; 0 where it does not say (streamed, or of another kind)."""
    head = file.read(12)
    if head[:4] in (b"RIFF", b"FORM"):
        claimed = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
        return 0 if claimed >= STREAMED else claimed + 8
    if head[4:8] == b"ftyp":
        return max(_box_ends(file, size))
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska_length(file)
    return 0


def _box_ends(file: BinaryIO, size: int) -> Iterator[int]:
    """Where each outermost box of an mp4 or mov file ends (ISO 14496-12, section 4.2)."""
    place = 0
    while place < size:
        file.seek(place)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:
            # Zero: to the end of the file. Anything else is not a box.
            yield size
            return
        place += length
        yield place


def _matroska_length(file: BinaryIO) -> int:
    """Where the one segment of a Matroska or WebM file ends (RFC 8794: an id, a length, the content)."""
    file.seek(4)
    _, header = _vint(file)
    file.seek(header, 1)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    unknown, length = _vint(file)
    return 0 if unknown else file.tell() + length


def _vint(file: BinaryIO) -> tuple[bool, int]:
    """A length of one to eight bytes, the leading zeros of its first telling how many; all ones mean unknown."""
    first = (file.read(1) or b"\xff")[0]
    more = 8 - first.bit_length()
    bits = 7 * (more + 1)
    value = int.from_bytes(bytes([first]) + file.read(more), "big") & ((1 << bits) - 1)
    return value == (1 << bits) - 1, value
