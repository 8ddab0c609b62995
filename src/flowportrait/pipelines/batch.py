"""Several videos in one run, and samples of prompts.

Several videos in one run: which picture goes with which recording, and what each video is called.

one photo, several recordings      each recording by this photo, named after the recording
several photos, one recording      the recording by each photo, named after the photo
several of both                    files of the same name belong together; without common names, files that were
                                   given one by one belong together in the order given

Render a folder of prompts with checkpoints to finished mp4 files: what the evaluation sees.

``rendered.json`` beside the videos says from what each was made (weights, picture, sound, seed, size) and what it cost.
A video is kept only while that is unchanged: a checkpoint that was trained further is drawn again.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from flowportrait import __version__
from flowportrait.data.prompts import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, read_prompts
from flowportrait.errors import BadInput
from flowportrait.files import check_not_an_input, check_output_folder, write_json
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.sound_track import FORMATS
from flowportrait.media.video import FPS
from flowportrait.models.arflow import checkpoint_folder
from flowportrait.pipelines.animate import AnimatePipeline
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


RECORD = "rendered.json"


def system_names(checkpoints: Sequence[str]) -> list[str]:
    """A name for each checkpoint that tells them apart and can be a folder: the last part, or all of it.

    Raises:
        BadInput: two are the same folder, or not told apart by their paths.
    """
    folders = [checkpoint_folder(name).resolve() for name in checkpoints]
    if len(set(folders)) < len(folders):
        raise BadInput(f"{' and '.join(checkpoints)} are one checkpoint: give two different ones to compare.")
    short = [Path(name).name for name in checkpoints]
    if len(set(short)) < len(short) or "" in short:
        short = ["_".join(part for part in Path(name).parts if part.strip("/.")) for name in checkpoints]
    if len(set(short)) < len(short) or "" in short:
        raise BadInput(f"The paths {' and '.join(checkpoints)} do not tell the checkpoints apart: write them in full.")
    return short


def render_prompts(checkpoint: str, prompts: Path, folder: Path, seed: int = 0, size: int = 512) -> list[Path]:
    """One face-square video per prompt, named after it."""
    found = read_prompts(prompts)
    pipeline = AnimatePipeline.from_pretrained(checkpoint)
    weights = _digest(checkpoint_folder(checkpoint) / "model.safetensors")
    folder.mkdir(parents=True, exist_ok=True)
    record, made, videos = folder / RECORD, _recorded(folder), []
    for prompt in track(found, description=f"rendering {checkpoint}", console=Console(stderr=True)):
        target = folder / f"{prompt.id}.mp4"
        videos.append(target)
        sources = [__version__, weights, _digest(prompt.image), _digest(prompt.audio), str(seed), str(size)]
        origin = hashlib.sha256("\n".join(sources).encode()).hexdigest()
        if target.is_file() and made.get(prompt.id, {}).get("origin") == origin:
            continue
        watch = Stopwatch()
        portrait = Portrait.from_image(read_image(prompt.image), size, str(prompt.image))
        video = pipeline(portrait, prompt.audio, seed=seed, crop=True)
        video.save(target, sign=False, watermark=False, watch=watch)
        made[prompt.id] = {"origin": origin, "cost": watch.cost()}
        write_json(record, made)
    return videos


def rendering_costs(folder: Path) -> dict[str, dict[str, Any]]:
    """Figures per video (``Stopwatch.cost``) of a folder that ``render_prompts`` filled; empty for any other."""
    return {name: entry["cost"] for name, entry in _recorded(folder).items() if "cost" in entry}


class Stopwatch:
    """What making one video costs, from the moment it exists to the last frame: encoding included, loading not."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._first: float | None = None
        self._frames = 0

    def __call__(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The frames, counted."""
        for frame in frames:
            if self._first is None:
                self._first = time.monotonic() - self._began
            self._frames += 1
            yield frame

    def cost(self) -> dict[str, float]:
        """frames_per_second, seconds_per_second (of video), first_frame (seconds), peak_memory (MB, of the process;
        left out on Windows, which does not report it)."""
        seconds = time.monotonic() - self._began
        found = {
            "frames_per_second": round(self._frames / seconds, 2),
            "seconds_per_second": round(seconds * FPS / max(1, self._frames), 3),
            "first_frame": round(self._first or seconds, 3),
        }
        if sys.platform != "win32":
            import resource

            # Kilobytes on Linux, bytes on macOS.
            unit = 2**20 if sys.platform == "darwin" else 2**10
            found["peak_memory"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
        return found


def _recorded(folder: Path) -> dict[str, dict[str, Any]]:
    record = folder / RECORD
    try:
        found = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    except json.JSONDecodeError:
        return {}
    return {name: entry for name, entry in found.items() if isinstance(entry, dict)}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
