"""Kinds of video file that can be written, by the suffix of the name.

.mp4  H.264 + AAC      plays everywhere
.mov  H.264 + AAC      for editors
.webm VP9 + Opus       for web pages; may be transparent
.gif  256 colours      for chats; silent; may be transparent
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowportrait.errors import BadInput


@dataclass(frozen=True)
class OutputFormat:
    """The properties of one kind of video file.

    Attributes:
        suffix: the ending of its name.
        muxer: FFmpeg's name of the container.
        mime: its media type.
        video_codec: FFmpeg's encoder of the picture.
        audio_codec: FFmpeg's encoder of the sound; None means no sound.
        copied: codecs (FFmpeg's names) of given sound that are copied into the container unchanged and that browsers
            play from it.
        transparent: whether frames may have an alpha channel.
        embeds_manifest: whether a C2PA manifest is put into the file; otherwise it lies beside it.
        streamed: whether the file can be played while it is written.
    """

    suffix: str
    muxer: str
    mime: str
    video_codec: str
    audio_codec: str | None
    copied: frozenset[str] = frozenset()
    transparent: bool = False
    embeds_manifest: bool = True
    streamed: bool = False


OUTPUT_FORMATS = {
    form.suffix: form
    for form in (
        OutputFormat(".mp4", "mp4", "video/mp4", "libx264", "aac", frozenset({"aac", "mp3", "opus"}), streamed=True),
        OutputFormat(".mov", "mov", "video/quicktime", "libx264", "aac", frozenset({"aac", "mp3", "alac"})),
        OutputFormat(
            ".webm", "webm", "video/webm", "libvpx-vp9", "libopus", frozenset({"opus", "vorbis"}),
            transparent=True, embeds_manifest=False, streamed=True,
        ),
        OutputFormat(".gif", "gif", "image/gif", "gif", None, transparent=True),
    )
}  # fmt: skip
"""The formats by the suffix of the file's name, in lower case."""


def output_format(path: str | Path) -> OutputFormat:
    """Return the format that a file name asks for by its suffix.

    Raises:
        BadInput: the suffix is none of ``OUTPUT_FORMATS``.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in OUTPUT_FORMATS:
        *others, last = OUTPUT_FORMATS
        raise BadInput(f"Cannot write {path}: the name must end in {', '.join(others)} or {last}.")
    return OUTPUT_FORMATS[suffix]
