"""Several videos in one run.

one photo, several recordings      each recording by this photo, named after the recording
several photos, one recording      the recording by each photo, named after the photo
several of both                    files of the same name belong together; without common names, files that were
                                   given one by one belong together in the order given
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from flowportrait.data.prompts import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES
from flowportrait.errors import BadInput
from flowportrait.files import check_not_an_input, check_output_folder
from flowportrait.media.formats import FORMATS
from flowportrait.pipelines.request import AnimateRequest


class BatchItem(NamedTuple):
    """One video of a batch: the request, and the file to write."""

    request: AnimateRequest
    output: Path


def is_batch(pictures: Sequence[Path], recordings: Sequence[Path]) -> bool:
    """Whether these inputs make several videos: more than one of either, or a folder."""
    return len(pictures) > 1 or len(recordings) > 1 or any(path.is_dir() for path in (*pictures, *recordings))


def plan_batch(
    settings: AnimateRequest, folder: Path, pictures: Sequence[Path], recordings: Sequence[Path], suffix: str = ".mp4"
) -> list[BatchItem]:
    """A request and a file name in ``folder`` for every video that these inputs make together.

    Args:
        settings: a request that says how, with the first picture as its ``image`` or ``video``.
        folder: where the videos go.
        pictures: photos or videos, or folders of them.
        recordings: speech, or folders of it; none where ``settings.text`` is spoken.
        suffix: ending of the videos' names.

    Raises:
        BadInput: a folder without suitable files, inputs that cannot be paired, or a setting that goes with one input.
    """
    if settings.motion_in:
        raise BadInput("--motion-in goes with one input: give one file, or leave it out.")
    if settings.text == "-":
        raise BadInput("--text - is read once: with several inputs give the text itself.")
    if folder.suffix.lower() in FORMATS and not folder.is_dir():
        raise BadInput(f"--output {folder} names one video: with several inputs give the name of a folder.")
    check_output_folder(folder)
    source, suffixes = ("image", IMAGE_SUFFIXES) if settings.image else ("video", VIDEO_SUFFIXES)
    found = _list_files(pictures, suffixes, f"--{source}")
    sounds = _list_files(recordings, AUDIO_SUFFIXES | VIDEO_SUFFIXES, "--audio")
    in_order = not any(path.is_dir() for path in (*pictures, *recordings))
    pairs: Sequence[tuple[Path, Path | None, str]]
    pairs = _pair(found, sounds, in_order) if sounds else [(path, None, path.stem) for path in found]
    items = []
    for picture, sound, name in pairs:
        image, video = (picture, None) if settings.image else (None, picture)
        request = replace(settings, image=image, video=video, audio=sound)
        items.append(BatchItem(request, folder / f"{name}{suffix}"))
    _check_names([item.output for item in items], [*found, *sounds])
    return items


def _list_files(given: Sequence[Path], suffixes: set[str], flag: str) -> list[Path]:
    """Files as they were given, and those of folders in the order of their names."""
    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            found.append(path)
            continue
        own = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))
        if not own:
            *others, last = sorted(suffixes)
            listed = f"{', '.join(others)} or {last}"
            raise BadInput(f"{flag} {path} holds no suitable file: it needs one that ends in {listed}.")
        found += own
    return found


def _pair(pictures: list[Path], sounds: list[Path], in_order: bool) -> list[tuple[Path, Path, str]]:
    """Who speaks what, and what the video is called, without its ending."""
    if len(pictures) == 1:
        return [(pictures[0], sound, sound.stem) for sound in sounds]
    if len(sounds) == 1:
        return [(picture, sounds[0], picture.stem) for picture in pictures]
    by_name, spoken = {path.stem: path for path in pictures}, {path.stem: path for path in sounds}
    if by_name.keys() == spoken.keys() and len(by_name) == len(pictures) and len(spoken) == len(sounds):
        return [(path, spoken[name], name) for name, path in by_name.items()]
    if in_order and len(pictures) == len(sounds) and not by_name.keys() & spoken.keys():
        return [(path, sound, path.stem) for path, sound in zip(pictures, sounds, strict=True)]
    raise BadInput(
        f"It is not clear which of {len(pictures)} pictures goes with which of {len(sounds)} recordings: give one of "
        "either, or files of the same names (anna.jpg and anna.wav)."
    )


def _check_names(outputs: list[Path], inputs: list[Path]) -> None:
    # Some file systems do not tell upper case from lower case.
    names = [path.name.casefold() for path in outputs]
    for path in outputs:
        if names.count(path.name.casefold()) > 1:
            raise BadInput(f"Two of the inputs would be written to {path}: rename one of them.")
        check_not_an_input(path, inputs)
