"""Several videos in one run: which picture goes with which recording, and what each video is called (``plan_batch``):

one photo, several recordings      each recording with this photo, named after the recording
several photos, one recording      the recording with each photo, named after the photo
several of both                    files with the same name belong together; without common names, files that were
                                   given individually are paired in the order given
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from flowportrait.data.prompts import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES
from flowportrait.errors import BadInput
from flowportrait.files import check_output_folder, check_output_is_not_input
from flowportrait.media.formats import OUTPUT_FORMATS
from flowportrait.pipelines.request import AnimateRequest


class BatchItem(NamedTuple):
    """One video of a batch: its request and its output file."""

    request: AnimateRequest
    output: Path


def is_batch(pictures: Sequence[Path], recordings: Sequence[Path]) -> bool:
    """Return whether these inputs make several videos: more than one of either kind, or a folder."""
    return len(pictures) > 1 or len(recordings) > 1 or any(path.is_dir() for path in (*pictures, *recordings))


def plan_batch(
    settings: AnimateRequest, folder: Path, pictures: Sequence[Path], recordings: Sequence[Path], suffix: str = ".mp4"
) -> list[BatchItem]:
    """Return a request and an output file in ``folder`` for every video of a batch.

    Args:
        settings: a request with the common settings and the first picture as its ``image`` or ``video``.
        folder: output folder.
        pictures: photos or videos, or folders of them.
        recordings: speech, or folders of it; empty if ``settings.text`` is spoken.
        suffix: file name suffix of the videos.

    Raises:
        BadInput: a folder has no suitable files, the inputs cannot be paired, or a setting works with one input only.
    """
    if settings.motion_in:
        raise BadInput("--motion-in goes with one input: give one file, or leave it out.")
    if settings.text == "-":
        raise BadInput("--text - is read once: with several inputs give the text itself.")
    if folder.suffix.lower() in OUTPUT_FORMATS and not folder.is_dir():
        raise BadInput(f"--output {folder} names one video: with several inputs give the name of a folder.")
    check_output_folder(folder)
    source, suffixes = ("image", IMAGE_SUFFIXES) if settings.image else ("video", VIDEO_SUFFIXES)
    found = _list_files(pictures, suffixes, f"--{source}")
    sounds = _list_files(recordings, AUDIO_SUFFIXES | VIDEO_SUFFIXES, "--audio")
    in_order = not any(path.is_dir() for path in (*pictures, *recordings))
    pairs: Sequence[tuple[Path, Path | None, str]]
    pairs = _pair_inputs(found, sounds, in_order) if sounds else [(path, None, path.stem) for path in found]
    items = []
    for picture, sound, name in pairs:
        image, video = (picture, None) if settings.image else (None, picture)
        request = replace(settings, image=image, video=video, audio=sound)
        items.append(BatchItem(request, folder / f"{name}{suffix}"))
    _check_names([item.output for item in items], [*found, *sounds])
    return items


def _list_files(paths: Sequence[Path], suffixes: set[str], flag: str) -> list[Path]:
    """Return the given files, and the files of given folders in alphabetical order."""
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        in_folder = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))
        if not in_folder:
            *others, last = sorted(suffixes)
            listed = f"{', '.join(others)} or {last}"
            raise BadInput(f"{flag} {path} holds no suitable file: it needs one that ends in {listed}.")
        files += in_folder
    return files


def _pair_inputs(pictures: list[Path], sounds: list[Path], in_order: bool) -> list[tuple[Path, Path, str]]:
    """Return picture, recording and file name (without suffix) of every video."""
    if len(pictures) == 1:
        return [(pictures[0], sound, sound.stem) for sound in sounds]
    if len(sounds) == 1:
        return [(picture, sounds[0], picture.stem) for picture in pictures]
    pictures_by_name, sounds_by_name = {path.stem: path for path in pictures}, {path.stem: path for path in sounds}
    if (
        pictures_by_name.keys() == sounds_by_name.keys()
        and len(pictures_by_name) == len(pictures)
        and len(sounds_by_name) == len(sounds)
    ):
        return [(path, sounds_by_name[name], name) for name, path in pictures_by_name.items()]
    if in_order and len(pictures) == len(sounds) and not pictures_by_name.keys() & sounds_by_name.keys():
        return [(path, sound, path.stem) for path, sound in zip(pictures, sounds, strict=True)]
    raise BadInput(
        f"It is not clear which of {len(pictures)} pictures goes with which of {len(sounds)} recordings: give one of "
        "either, or files of the same names (anna.jpg and anna.wav)."
    )


def _check_names(outputs: list[Path], inputs: list[Path]) -> None:
    # Some file systems do not distinguish upper and lower case.
    names = [path.name.casefold() for path in outputs]
    for path in outputs:
        if names.count(path.name.casefold()) > 1:
            raise BadInput(f"Two of the inputs would be written to {path}: rename one of them.")
        check_output_is_not_input(path, inputs)
