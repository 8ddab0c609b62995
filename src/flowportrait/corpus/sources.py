"""Which videos there are to prepare, whose they are, and which split they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flowportrait.corpus.layouts import LAYOUTS, Layout, recognise
from flowportrait.errors import BadInput

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".m4v"}


@dataclass(frozen=True)
class Source:
    """A video to prepare: where it is, the name it gets, who speaks, which split it belongs to, and the file that
    holds its sound where it has none itself."""

    path: Path
    name: str
    speaker: str
    split: str
    sound: Path | None = None


def find_sources(inputs: Sequence[Path], layout: str = "auto", hold_out: float = 0.0) -> list[Source]:
    """Videos below files and folders.

    A folder with a ``split.tsv`` (file, speaker, split) uses its columns; otherwise the layout tells the speaker, or
    the parent folder's name. ``hold_out``: this share of the speakers goes to the split ``dev``, chosen by a hash of
    their name, so that a speaker is never on both sides, however often the corpus grows.

    Raises:
        BadInput: an input or the layout does not exist, or nothing is found.
    """
    known = {known.name: known for known in LAYOUTS}
    if layout not in ("auto", "folders", *known):
        raise BadInput(f"There is no layout {layout!r}: choose auto, folders or one of {', '.join(known)}.")
    sources: list[Source] = []
    for given in inputs:
        if not given.exists():
            raise BadInput(f"No video or folder at {given}: check the path.")
        if (given / "split.tsv").is_file():
            sources += _listed(given)
            continue
        base = given if given.is_dir() else given.parent
        every = sorted(given.rglob("*")) if given.is_dir() else [given]
        found = [video.relative_to(base).as_posix() for video in every if video.suffix.lower() in VIDEO_SUFFIXES]
        rule = known.get(layout) or (recognise(found) if layout == "auto" else None)
        sources += [_source(base, path, rule) for path in found]
    if not sources:
        raise BadInput(f"No videos found in {', '.join(map(str, inputs))}: give mp4, mov, mkv, webm or avi files.")
    names: dict[str, Path] = {}
    for source in sources:
        if names.setdefault(source.name, source.path) != source.path:
            raise BadInput(
                f"{names[source.name]} and {source.path} would both be called {source.name}: prepare them apart."
            )
    return [_held_out(source, hold_out) for source in sources]


def _listed(folder: Path) -> list[Source]:
    sources = []
    for number, line in enumerate((folder / "split.tsv").read_text(encoding="utf-8").splitlines()[1:], 2):
        columns = line.split("\t")
        if len(columns) != 3:
            raise BadInput(f"{folder / 'split.tsv'} line {number} needs three columns: file, speaker, split.")
        file, speaker, split = columns
        sources.append(Source(folder / file, Path(file).with_suffix("").as_posix(), speaker, split))
    return sources


def _source(base: Path, path: str, layout: Layout | None) -> Source:
    name = Path(path).with_suffix("").as_posix()
    whose = layout.match(path) if layout else None
    if layout is None or whose is None:
        return Source(base / path, name, (base / path).parent.name, "train")
    return Source(base / path, name, *whose, layout.sound_of(base / path))


def _held_out(source: Source, share: float) -> Source:
    place = int.from_bytes(hashlib.sha256(source.speaker.encode()).digest()[:8], "big") / 2**64
    return replace(source, split="dev") if source.split == "train" and place < share else source
