"""Open media files: their streams, when they begin, and whether the whole file is there.

FFmpeg treats a name with a colon as a network address, and opens the other files that some files name (playlists,
session descriptions). Here a name is always a file, and no other file is opened.

FFmpeg also plays a truncated file up to its end without an error, so that half of a recording would become half a
video. Therefore the length that a file declares is compared with the length that it has.
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

# --- Messages of native libraries -------------------------------------------------------
#
# MediaPipe and TensorFlow Lite write start-up messages straight to file descriptor 2, past Python's ``sys.stderr``.
# While they are silenced anywhere in the process such messages are discarded; what Python prints still arrives, and
# exceptions pass. Several threads may silence them at once: the first one redirects the descriptor, the last one
# restores it.


class _Redirection:
    """A redirection of file descriptor 2 to the null device that lasts while it has users."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._terminal: int | None = None
        """Where descriptor 2 points while nobody is silenced; kept open, since threads may still write to it."""
        self._substitute: TextIO | None = None
        self._replaced: Any = None
        self._redirected = False

    def add_user(self) -> None:
        """Add a user; the first one redirects."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                # Without a usable standard error (a service, a notebook) there is nothing to redirect.
                with suppress(OSError, ValueError):
                    self._redirect()

    def remove_user(self) -> None:
        """Remove a user; the last one restores."""
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
def silence_native_stderr() -> Iterator[None]:
    """Redirect file descriptor 2 to the null device, and ``sys.stderr`` to where it pointed before."""
    _redirection.add_user()
    try:
        yield
    finally:
        _redirection.remove_user()


def _is_descriptor_two(stream: Any) -> bool:
    try:
        return bool(stream.fileno() == 2)
    except (AttributeError, OSError, ValueError):
        return False


# --- Opening files ----------------------------------------------------------------------

STREAMED_WAV_LENGTH = 0x7FFF_0000
"""Values in a wav header from here on are no length: recorders that write to a pipe state two or four gigabytes.
"""

FFMPEG_CONTAINERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,dv,eac3,flac,flv,gif,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mp3,mpeg,mpegts,"
    "mpegvideo,mxf,nut,obu,ogg,rm,tta,w64,wav,wv,y4m,yuv4mpegpipe,apng"
)
"""FFmpeg's names of formats that hold their own pictures and sound.

Not among them: formats that name further files or addresses (hls, dash, concat, sdp, rtsp, imf, image2) and formats
that run as a script (avisynth, vapoursynth).
"""

_IMAGE_CODECS = {"mjpeg", "png", "bmp", "tiff", "webp", "gif"}
_THUMBNAIL = Disposition.attached_pic | Disposition.timed_thumbnails
_PLAYLIST = re.compile(
    rb"\s*(#EXTM3U|ffconcat version|v=0\r?\n|\[playlist\]|RTSPtext|(<\?xml[^>]*>\s*)?<(MPD|smil|asx)\b)", re.IGNORECASE
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]{1,2}[^/\\]")


def file_url(path: str | Path) -> str:
    """Return the name of a file as FFmpeg takes it for reading and writing.

    It is never taken for a protocol, whatever the path contains.
    """
    return f"file:{os.fspath(path)}"


def open_media(path: str | Path) -> Any:
    """Open a media file for reading and return its ``av`` container; close it or use it as a context manager.

    The file alone is read: playlists and other formats that name further files are refused, as is every protocol. Text
    tags that are not UTF-8 are read with replacements.

    Raises:
        av.FFmpegError, OSError: FFmpeg cannot open it.
        BadInput: it is a list of other files.
    """
    options = {"protocol_whitelist": "file", "format_whitelist": FFMPEG_CONTAINERS}
    try:
        return av.open(file_url(path), "r", options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError):
        with open(path, "rb") as file:
            head = file.read(512).removeprefix(b"\xef\xbb\xbf")
        if _PLAYLIST.match(head):
            raise BadInput(f"{path} is a list of other files or addresses: give the recording itself.") from None
        raise


def check_is_file(path: Path, kind: str) -> None:
    """Check that there is a file to read, before anything opens it.

    Args:
        path: the path that the user gave.
        kind: ``audio``, ``video`` or ``image``, for the message.

    Raises:
        BadInput: there is none; the message distinguishes folders and web addresses.
    """
    if path.is_file():
        return
    if path.is_dir():
        raise BadInput(f"{path} is a folder: give one {kind} file.")
    # A Path keeps one of the two slashes of an address.
    if _URL.match(str(path)):
        address = re.sub(r":[/\\]+", "://", str(path), count=1)
        raise BadInput(f"{address} is an address, not a file: download it first and give the {kind} file's path.")
    raise BadInput(f"No {kind} file at {path}: check the path.")


# --- Streams ----------------------------------------------------------------------------


def main_video_stream(container: Any) -> Any | None:
    """Return the stream that is an opened file's moving picture; None where it has no picture or only a cover.

    A cover or a track of thumbnails may come first, and not every writer marks it as such.
    """
    videos = [stream for stream in container.streams.video if not stream.disposition & _THUMBNAIL]
    videos = [stream for stream in videos if stream.codec_context is not None]
    return max(videos, key=_prominence, default=None)


def main_sound_stream(container: Any) -> Any | None:
    """Return the stream of sound that players play: the default one, else the first; None without sound."""
    sounds = [stream for stream in container.streams.audio if stream.codec_context is not None]
    return max(sounds, key=lambda stream: bool(stream.disposition & Disposition.default), default=None)


def start_time_of(container: Any) -> float:
    """Return the time in seconds at which an opened file begins.

    That is the start of its picture or its sound, whichever is earlier. Both count from here, so that a track that
    starts late stays where it belongs.
    """
    played = [stream for stream in (main_video_stream(container), main_sound_stream(container)) if stream is not None]
    starts = [float(stream.start_time * stream.time_base) for stream in played if stream.start_time is not None]
    return min(starts, default=0.0)


def _prominence(stream: Any) -> tuple[bool, bool, int, int]:
    """Return a key that is largest for the main picture, most important criterion first."""
    context = stream.codec_context
    entries = max(stream.frames, len(stream.index_entries))
    return (
        context.name not in _IMAGE_CODECS,
        bool(stream.disposition & Disposition.default),
        entries,
        context.width * context.height,
    )


# --- Whether the whole file is there ----------------------------------------------------


def check_declared_length(path: Path) -> None:
    """Compare the length that a file's outermost boxes declare with the length it has, before it is opened.

    Raises:
        BadInput: the file is empty, or ends before its declared end.
    """
    size = path.stat().st_size
    if size == 0:
        raise BadInput(f"{path} is empty (0 bytes): copy or download it again.")
    with path.open("rb") as file:
        declared = _declared_length(file, size)
    # Some recorders miscount their header by a few bytes; nothing audible is lost there.
    if declared > size * 1.01:
        raise BadInput(f"{path} is damaged, only {size / declared:.0%} of it is there: copy or download it again.")


def check_index_within_file(container: Any, path: Path) -> None:
    """Compare the index of an opened file with the file's size.

    Raises:
        BadInput: the index names pictures or sound beyond the end of the file.
    """
    size = path.stat().st_size
    end = max((entry.pos + entry.size for stream in container.streams for entry in stream.index_entries), default=0)
    if end > size:
        raise BadInput(f"{path} is damaged, only {size / end:.0%} of it is there: copy or download it again.")


def _declared_length(file: BinaryIO, size: int) -> int:
    """Return the number of bytes a file declares; 0 where it declares none (streamed, or of another kind)."""
    head = file.read(12)
    if head[:4] in (b"RIFF", b"FORM"):
        declared = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
        return 0 if declared >= STREAMED_WAV_LENGTH else declared + 8
    if head[4:8] == b"ftyp":
        return max(_box_ends(file, size))
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska_length(file)
    return 0


def _box_ends(file: BinaryIO, size: int) -> Iterator[int]:
    """Yield where each outermost box of an mp4 or mov file ends (ISO 14496-12, section 4.2)."""
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
    """Return where the one segment of a Matroska or WebM file ends (RFC 8794: an id, a length, the content)."""
    file.seek(4)
    _, header = _vint(file)
    file.seek(header, 1)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    unknown, length = _vint(file)
    return 0 if unknown else file.tell() + length


def _vint(file: BinaryIO) -> tuple[bool, int]:
    """Read an EBML length of one to eight bytes: whether it is unknown (all ones), and its value.

    The leading zeros of its first byte give the number of bytes.
    """
    first = (file.read(1) or b"\xff")[0]
    more = 8 - first.bit_length()
    bits = 7 * (more + 1)
    value = int.from_bytes(bytes([first]) + file.read(more), "big") & ((1 << bits) - 1)
    return value == (1 << bits) - 1, value
