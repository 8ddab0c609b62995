"""Opening media files: their streams, beginnings, and whether all of them is there.

Keep the chatter of native libraries off the user's terminal.

MediaPipe and TensorFlow Lite write start-up remarks straight to file descriptor 2, past Python's ``sys.stderr``.
While this is active anywhere in the process such writes go nowhere; what Python prints still arrives, and exceptions
pass. Threads may use it at the same time: the first one in redirects the descriptor, the last one out restores it.

Opening media files, which of their streams count, when they begin, and whether all of them is there.

FFmpeg takes a name with a colon for a network address, and some files (playlists, session descriptions) for an order
to open others. Here a name is a file and nothing else, and a file is read alone.

It also plays a file that was cut off to where it ends and reports nothing: a broken download would become a frozen
picture, half a recording half a video. So the length a file claims is compared with the length it has.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import av
from av.stream import Disposition

from flowportrait.errors import BadInput


class _Redirection:
    """File descriptor 2 at the null device for as long as somebody wants it there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._terminal: int | None = None
        """Where descriptor 2 points while nobody is silenced; kept open, since threads may still write to it."""
        self._substitute: TextIO | None = None
        self._replaced: Any = None
        self._redirected = False

    def begin(self) -> None:
        """Redirect if this is the first user."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                # Without a usable standard error (a service, a notebook) there is nothing to keep clean.
                with suppress(OSError, ValueError):
                    self._redirect()

    def end(self) -> None:
        """Restore if this was the last user."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._restore()

    def _redirect(self) -> None:
        if sys.stderr is not None:
            sys.stderr.flush()
        if self._terminal is None:
            self._terminal = os.dup(2)
        else:
            os.dup2(2, self._terminal, inheritable=False)
        if _is_descriptor_two(sys.stderr):
            if self._substitute is None:
                form = {name: getattr(sys.stderr, name, None) for name in ("encoding", "errors")}
                self._substitute = os.fdopen(self._terminal, "w", buffering=1, closefd=False, **form)
            self._replaced, sys.stderr = sys.stderr, self._substitute
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, 2)
            self._redirected = True
        finally:
            os.close(null)

    def _restore(self) -> None:
        if self._replaced is not None:
            if sys.stderr is self._substitute:
                sys.stderr = self._replaced
            self._replaced = None
        if self._substitute is not None:
            with suppress(OSError, ValueError):
                self._substitute.flush()
        if self._redirected and self._terminal is not None:
            os.dup2(self._terminal, 2)
        self._redirected = False


_redirection = _Redirection()


@contextmanager
def native_chatter_silenced() -> Iterator[None]:
    """Redirect file descriptor 2 to the null device, and ``sys.stderr`` to where it pointed before."""
    _redirection.begin()
    try:
        yield
    finally:
        _redirection.end()


def _is_descriptor_two(stream: Any) -> bool:
    try:
        return bool(stream.fileno() == 2)
    except (AttributeError, OSError, ValueError):
        return False


STREAMED = 0x7FFF_0000
"""Recorders that write to a pipe put a length of about two or four gigabytes into the header of a wav file."""

CONTAINERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,dv,eac3,flac,flv,gif,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mp3,mpeg,mpegts,"
    "mpegvideo,mxf,nut,obu,ogg,rm,tta,w64,wav,wv,y4m,yuv4mpegpipe,apng"
)
"""Formats that hold their own pictures and sound. Not among them: what names further files or addresses (hls, dash,
concat, sdp, rtsp, imf, image2) and what runs as a script (avisynth, vapoursynth)."""

_IMAGE_CODECS = {"mjpeg", "png", "bmp", "tiff", "webp", "gif"}
_THUMBNAIL = Disposition.attached_pic | Disposition.timed_thumbnails
_PLAYLIST = re.compile(
    rb"\s*(#EXTM3U|ffconcat version|v=0\r?\n|\[playlist\]|RTSPtext|(<\?xml[^>]*>\s*)?<(MPD|smil|asx)\b)", re.IGNORECASE
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]{1,2}[^/\\]")


def file_url(path: str | Path) -> str:
    """The name of a file as FFmpeg takes it, for reading and writing: never a protocol, whatever the path contains."""
    return f"file:{os.fspath(path)}"


def open_media(path: str | Path) -> Any:
    """An ``av`` container of a media file, to read; close it or use it as a context manager.

    The file alone is read: playlists and other formats that name further files are refused, as is every protocol.
    Text tags that are not UTF-8 are read with replacements.

    Raises:
        av.FFmpegError, OSError: FFmpeg cannot open it.
        BadInput: it is a list of other files.
    """
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    try:
        return av.open(file_url(path), "r", options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError):
        with open(path, "rb") as file:
            head = file.read(512).removeprefix(b"\xef\xbb\xbf")
        if _PLAYLIST.match(head):
            raise BadInput(f"{path} is a list of other files or addresses: give the recording itself.") from None
        raise


def check_is_file(path: Path, kind: str) -> None:
    """That there is a file to read, before anything opens it.

    Args:
        path: what the user gave.
        kind: ``audio``, ``video`` or ``image``, for the message.

    Raises:
        BadInput: there is none; an address is told from a path.
    """
    if path.is_file():
        return
    if path.is_dir():
        raise BadInput(f"{path} is a folder: give one {kind} file.")
    # A Path has one slash where the address had two.
    if _URL.match(str(path)):
        address = re.sub(r":[/\\]+", "://", str(path), count=1)
        raise BadInput(f"{address} is an address, not a file: download it first and give the {kind} file's path.")
    raise BadInput(f"No {kind} file at {path}: check the path.")


def video_stream(container: Any) -> Any | None:
    """The stream of an opened file that is its moving picture; None where it has no picture or only a cover.

    A cover or a track of thumbnails may come first, and not every writer marks it as such.
    """
    videos = [stream for stream in container.streams.video if not stream.disposition & _THUMBNAIL]
    videos = [stream for stream in videos if stream.codec_context is not None]
    return max(videos, key=_prominence, default=None)


def sound_stream(container: Any) -> Any | None:
    """The stream of an opened file that players play: the default one, else the first; None without sound."""
    sounds = [stream for stream in container.streams.audio if stream.codec_context is not None]
    return max(sounds, key=lambda stream: bool(stream.disposition & Disposition.default), default=None)


def origin(container: Any) -> float:
    """The moment an opened file begins in seconds: where its picture or its sound starts, whichever comes first.

    Picture and sound both count from here, so that a track that starts late stays where it belongs.
    """
    played = [stream for stream in (video_stream(container), sound_stream(container)) if stream is not None]
    starts = [float(stream.start_time * stream.time_base) for stream in played if stream.start_time is not None]
    return min(starts, default=0.0)


def _prominence(stream: Any) -> tuple[bool, bool, int, int]:
    """What makes a stream the main picture, most important first; of equals the first is taken."""
    context = stream.codec_context
    entries = max(stream.frames, len(stream.index_entries))
    return (
        context.name not in _IMAGE_CODECS,
        bool(stream.disposition & Disposition.default),
        entries,
        context.width * context.height,
    )


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
