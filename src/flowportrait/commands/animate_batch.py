"""``flowportrait animate`` with several inputs, or folders of them: one run, one loaded model, a folder of videos.

    one photo, several recordings      each recording by this photo, named after the recording
    several photos, one recording      the recording by each photo, named after the photo
    several of both                    files of the same name belong together; without common names, files that were
                                       given one by one belong together in the order given

A file that cannot be used is reported, and the others are still made.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowportrait.errors import BadInput, PartialFailure
from flowportrait.media.output_formats import FORMATS
from flowportrait.outputs import check_not_an_input, check_output_folder
from flowportrait.prompts import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES
from flowportrait.terminal import say


@dataclass(frozen=True)
class Jobs:
    """The videos to make: ``options`` of each, as for one input; together: whether they go into a folder."""

    options: Sequence[argparse.Namespace]
    together: bool

    @property
    def single(self) -> argparse.Namespace:
        """The options of the only video."""
        return self.options[0]


def jobs_of(options: argparse.Namespace) -> Jobs:
    """What ``--image``, ``--video`` and ``--audio`` ask for, with the name of each video.

    Raises:
        BadInput: a folder without suitable files, inputs that cannot be paired, or an option that goes with one input.
    """
    source = "image" if options.image else "video"
    given, sounds = getattr(options, source), options.audio or []
    together = len(given) > 1 or len(sounds) > 1 or any(path.is_dir() for path in (*given, *sounds))
    if not together:
        if options.format:
            raise BadInput("--format goes with several inputs: the ending of --output says what one video is.")
        return Jobs([_job(options, source, given[0], sounds[0] if sounds else None, options.output)], False)
    _check_folder_options(options)
    pictures = _files(given, IMAGE_SUFFIXES if source == "image" else VIDEO_SUFFIXES, f"--{source}")
    recordings = _files(sounds, AUDIO_SUFFIXES | VIDEO_SUFFIXES, "--audio")
    in_order = not any(path.is_dir() for path in (*given, *sounds))
    pairs = _pairs(pictures, recordings, in_order) if recordings else [(path, None, path.stem) for path in pictures]
    suffix = f".{options.format or 'mp4'}"
    jobs = [_job(options, source, path, sound, options.output / f"{name}{suffix}") for path, sound, name in pairs]
    _check_names([job.output for job in jobs], [*pictures, *recordings])
    return Jobs(jobs, True)


def run_batch(
    options: argparse.Namespace, jobs: Jobs, make: Callable[[argparse.Namespace], dict[str, Any]]
) -> dict[str, Any]:
    """Make every video; returns what the command prints.

    Raises:
        PartialFailure: some were not made.
    """
    options.output.mkdir(parents=True, exist_ok=True)
    videos: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    total = len(jobs.options)
    for number, job in enumerate(jobs.options, 1):
        began = time.monotonic()
        try:
            videos.append(make(job))
        except (BadInput, OSError) as error:
            failures[str(job.output)] = str(error)
            say(f"{number} of {total}: {job.output.name} was not made. {error}")
        except KeyboardInterrupt:
            say(f"{len(videos)} of {total} videos are finished in {options.output}.")
            raise
        else:
            say(f"{number} of {total}: {job.output.name}, {time.monotonic() - began:.0f} s")
    result: dict[str, Any] = {"output": str(options.output)}
    if options.json:
        result |= {"videos": videos, "failures": failures}
    else:
        result["made"] = f"{len(videos)} of {total}"
    if failures:
        listed = "; ".join(f"{Path(name).name}: {why}" for name, why in failures.items())
        raise PartialFailure(f"{len(failures)} of {total} videos were not made. {listed}", result)
    return result


def _job(options: argparse.Namespace, source: str, path: Path, sound: Path | None, output: Path) -> argparse.Namespace:
    job = copy.copy(options)
    setattr(job, source, path)
    job.audio, job.output = sound, output
    return job


def _check_folder_options(options: argparse.Namespace) -> None:
    for name in ("motion_in", "motion_out"):
        if getattr(options, name):
            raise BadInput(f"--{name.replace('_', '-')} goes with one input: give one file, or leave it out.")
    if options.text == "-":
        raise BadInput("--text - is read once: with several inputs give the text itself.")
    if options.output.suffix.lower() in FORMATS and not options.output.is_dir():
        raise BadInput(f"--output {options.output} names one video: with several inputs give the name of a folder.")
    check_output_folder(options.output)


def _files(given: Sequence[Path], suffixes: set[str], flag: str) -> list[Path]:
    """Files as they were given, and those of folders in the order of their names."""
    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            found.append(path)
            continue
        own = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))
        if not own:
            raise BadInput(f"{flag} {path} holds no suitable file: it needs one that ends in {_listed(suffixes)}.")
        found += own
    return found


def _listed(suffixes: set[str]) -> str:
    *others, last = sorted(suffixes)
    return f"{', '.join(others)} or {last}"


def _pairs(pictures: list[Path], sounds: list[Path], in_order: bool) -> list[tuple[Path, Path, str]]:
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
