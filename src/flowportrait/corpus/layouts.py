"""Whose face is in which file: the folder structures of the usual corpora.

    VoxCeleb2   [dev|test]/mp4/id00012/21Uxsk56VDQ/00001.mp4      sound also in …/aac/…/00001.m4a
    LRS3        [pretrain|trainval|test]/0Fi83BHQsMA/00002.mp4     a channel stands for a speaker
    HDTF        WDA_BarackObama_000.mp4, RD_Radio10_000.mp4        digits after a politician's name count videos
    MEAD        M003/video/front/angry/level_1/001.mp4            sound in M003/audio/angry/level_1/001.m4a
    GRID        s1/video/mpg_6000/bbaf2n.mpg                      the name spells the sentence

Anything else: the folder's name is the speaker. ``split.tsv`` (file, speaker, split) overrules all of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SHARE = 0.9
"""A layout is recognised when this share of the files follows it."""
TEST = ("test",)


@dataclass(frozen=True)
class Layout:
    """pattern: of a file's path, with groups ``speaker`` and perhaps ``part``. sound: how the path changes to where
    the sound lies that the video does not carry."""

    name: str
    pattern: re.Pattern[str]
    sound: tuple[re.Pattern[str], str] | None = None

    def match(self, path: str) -> tuple[str, str] | None:
        """Speaker and split (``train`` or ``test``) of a file, or None if it does not follow this layout."""
        found = self.pattern.search(path)
        if not found:
            return None
        part = found.groupdict().get("part") or ""
        return found["speaker"], "test" if part in TEST else "train"

    def sound_of(self, path: Path) -> Path | None:
        """The sound file that belongs to a video without sound, if it is there."""
        if self.sound is None:
            return None
        beside = Path(self.sound[0].sub(self.sound[1], path.as_posix()))
        return next((c for c in (beside.with_suffix(s) for s in (".m4a", ".wav")) if c != path and c.is_file()), None)


LAYOUTS = (
    Layout(
        "voxceleb2",
        re.compile(r"(?:(?:^|/)(?P<part>dev|test)/)?(?:mp4/)?(?P<speaker>id\d{5})/[\w-]{11}/\d{5}\.\w+$"),
        (re.compile(r"/mp4/(id\d{5}/)"), r"/aac/\1"),
    ),
    Layout("lrs3", re.compile(r"(?:(?:^|/)(?P<part>pretrain|trainval|test)/)?(?P<speaker>[\w-]{11})/\d{5}\.mp4$")),
    Layout(
        "mead",
        re.compile(r"(?P<speaker>[MW]\d{3})/video/\w+/\w+/level_\d/\d{3}\.\w+$"),
        (re.compile(r"/video/\w+/"), "/audio/"),
    ),
    Layout(
        "grid", re.compile(r"(?P<speaker>s\d{1,2})/(?:video/)?(?:mpg_\w+/)?[blps][bgrw][abiw][a-z][0-9z][anps]\.\w+$")
    ),
    Layout("hdtf", re.compile(r"(?:^|/)(?P<speaker>RD_Radio\d+|W[DR]A_[A-Za-z]+)\d*(?:_\w+)?\.\w+$")),
)


def recognise(paths: Sequence[str]) -> Layout | None:
    """The layout that nine tenths of these paths follow, or None."""
    for layout in LAYOUTS:
        if paths and sum(layout.match(path) is not None for path in paths) >= SHARE * len(paths):
            return layout
    return None
