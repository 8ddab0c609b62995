"""Prompts: pairs of portrait and speech for post-training and evaluation.

They are a folder of images and audio files. With a ``prompts.jsonl`` in it, one line per pair, ``{"image": "a.png",
"audio": "b.wav"}``, and "id" and "speaker" if you like; without one, every image is paired with every recording.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowportrait.errors import BadInput

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".gif"}
VIDEO_SUFFIXES = {".mp4", ".mov", ".webm", ".avi", ".mkv", ".m4v", ".mpg"}
AUDIO_SUFFIXES = {".wav", ".mp3", ".m4a", ".flac", ".ogg", ".opus", ".aac", ".aif", ".aiff", ".wma"}


@dataclass(frozen=True)
class Prompt:
    """One portrait and one recording; ``speaker`` is who speaks, where ``prompts.jsonl`` says it."""

    id: str
    image: Path
    audio: Path
    speaker: str | None = None


def read_prompts(folder: Path) -> list[Prompt]:
    """Return the prompts of a folder, in a fixed order.

    Raises:
        BadInput: no such folder, nothing to pair, or a bad line in ``prompts.jsonl``.
    """
    if not folder.is_dir():
        raise BadInput(f"No prompts folder at {folder}: give a folder with images and audio files.")
    listing = folder / "prompts.jsonl"
    if listing.is_file():
        return _read_listing(listing)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    sounds = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
    for group, kind in ((images, "images"), (sounds, "audio files")):
        if not group:
            raise BadInput(f"{folder} holds no {kind}: prompts need at least one portrait and one recording.")
    return _with_unique_ids(
        [Prompt(f"{image.stem}-{sound.stem}", image, sound) for image in images for sound in sounds], folder
    )


def find_videos(inputs: Sequence[Path]) -> list[Path]:
    """Return the videos among files and folders.

    Raises:
        BadInput: a path does not exist, or nothing is found.
    """
    videos: list[Path] = []
    for path in inputs:
        if not path.exists():
            raise BadInput(f"No video or folder at {path}: check the path.")
        contents = (p for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith("."))
        videos += sorted(contents) if path.is_dir() else [path]
    if not videos:
        raise BadInput(f"No videos (mp4, mov, webm, avi, mkv) in {', '.join(map(str, inputs))}.")
    return videos


def _read_listing(listing: Path) -> list[Prompt]:
    prompts = []
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{listing} cannot be read as text ({error}): write one JSON object per line.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{listing} line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(f"{where} is not JSON ({error.msg}): write one object per line.") from error
        if not isinstance(record, dict) or set(record) | {"id", "speaker"} != {"image", "audio", "id", "speaker"}:
            raise BadInput(
                f'{where} needs the keys "image" and "audio", "id" and "speaker" if you like, and no others.'
            )
        if not all(isinstance(value, str) and value for value in record.values()):
            raise BadInput(f"{where} has a value that is not a text: write paths and id in quotes.")
        image, audio = listing.parent / record["image"], listing.parent / record["audio"]
        for path in (image, audio):
            if not path.is_file():
                raise BadInput(f"{where} names {path}, which does not exist.")
        name = record.get("id", f"{image.stem}-{audio.stem}")
        if Path(name).name != name:
            raise BadInput(f"{where} has the id {name!r}, which cannot be a file name: leave out slashes.")
        prompts.append(Prompt(name, image, audio, record.get("speaker")))
    if not prompts:
        raise BadInput(f"{listing} lists no prompts: write one JSON object per line.")
    return _with_unique_ids(prompts, listing)


def _with_unique_ids(prompts: list[Prompt], where: Path) -> list[Prompt]:
    # Ids name the videos: two prompts of one id would overwrite each other.
    ids = [prompt.id for prompt in prompts]
    duplicate = next((name for name in ids if ids.count(name) > 1), None)
    if duplicate:
        raise BadInput(f"{where} has two prompts with the id {duplicate!r}: rename a file or give each its own id.")
    return prompts
