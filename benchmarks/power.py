"""An evaluation with power: systems on a set of unseen speakers, and the smallest difference that it could show."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from benchmarks.drawing import codecs, named_checkpoints
from benchmarks.evaluation_set import NEWS, SOUND, WILD, SetPiece, build_set, sound_pieces, write_manifest
from benchmarks.material import use_one_thread
from benchmarks.power_videos import SIZE, SetVideos, minutes_of_sound
from benchmarks.record import Record
from flowportrait.errors import BadInput
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.terminal import log, progress

Work = TypeVar("Work")
LOG_SECONDS = 60.0
"""Time between two lines about the progress."""
PowerPart = Literal["set", "exaggeration", "minute", "sound"]


@dataclass(frozen=True)
class PowerOptions:
    """Measure systems on the evaluation set of unseen speakers, and say how small a difference it can show.

    Pieces of four seconds, intervals over speakers, each of whom counts the same. Baselines that must lose: a still
    face, another sentence's motion, the true motion five frames late, a jaw that follows loudness. Ceilings: the
    footage, and its motion redrawn. The parts: set, the pieces; exaggeration, lips scaled, to see what sync and
    fidelity make of it; minute, drift within a minute; sound, recordings without a video. What is in OUTPUT is kept:
    the same command continues an interrupted run.
    """

    data: Path
    """Footage with split.tsv."""
    output: Path
    """Folder of the videos, manifest.json and the tables."""
    systems: tuple[str, ...] = ("sft", "rl")
    """Each a checkpoint's name, a folder, or NAME=FOLDER; the others are compared with the first."""
    part: tuple[PowerPart, ...] = ("set", "exaggeration", "minute", "sound")
    """What to draw and measure."""
    per_speaker: int | None = None
    """Most pieces of a speaker; all by default."""
    per_recording: int = 1
    """Most pieces of a recording without a video."""


def power(options: PowerOptions, record: Record) -> None:
    """Draw what is missing, measure everything, and write the tables."""
    use_one_thread()
    found = named_checkpoints(options.systems)
    animators = {name: Animator.from_pretrained(checkpoint) for name, checkpoint in found.items()}
    everything, left_out = build_set(options.data)
    pieces = first_of_speakers(everything, options.per_speaker)
    options.output.mkdir(parents=True, exist_ok=True)
    digest = write_manifest(options.output / "manifest.json", pieces, left_out)
    record.note(f"{len(pieces)} pieces of {len({p.speaker for p in pieces})} speakers, set {digest[:12]}.")
    videos = SetVideos(options.data, options.output, animators, everything)
    make_videos(options, videos, pieces, everything)


def first_of_speakers(pieces: list[SetPiece], most: int | None) -> list[SetPiece]:
    """Return the first pieces of every speaker, in their order."""
    counts: dict[str, int] = {}
    chosen = []
    for piece in pieces:
        counts[piece.speaker] = counts.get(piece.speaker, 0) + 1
        if most is None or counts[piece.speaker] <= most:
            chosen.append(piece)
    return chosen


def make_videos(options: PowerOptions, videos: SetVideos, pieces: list[SetPiece], everything: list[SetPiece]) -> None:
    """Draw and track what is missing of the parts that are asked for."""
    if "set" in options.part:
        for_each(pieces, videos.make, "pieces")
    if "exaggeration" in options.part:
        for_each(one_of_each_speaker(pieces), videos.make_exaggerated, "pieces with scaled lips")
    if "minute" in options.part:
        jobs = [(minute, system) for minute in minutes(options, videos, everything) for system in videos.animators]
        for_each(jobs, lambda job: videos.make_windows(*job[0], job[1]), "minutes")
    if "sound" in options.part:
        for_each(sounds(options), lambda job: videos.make_of_sound(*job), "recordings")


def one_of_each_speaker(pieces: list[SetPiece]) -> list[SetPiece]:
    """Return one piece of every unseen speaker."""
    return first_of_speakers([piece for piece in pieces if piece.group in (WILD, NEWS)], 1)


def minutes(
    options: PowerOptions, videos: SetVideos, everything: list[SetPiece]
) -> list[tuple[SetPiece, np.ndarray, MotionCodec]]:
    """Return the minutes of sound, and what draws the speaker, or some portrait where there is no video."""
    stranger = codecs(options.data, 1, size=SIZE)[0]
    found = minutes_of_sound(options.data, everything)
    return [(one, sound, stranger if one.group == SOUND else videos.codec(one)) for one, sound in found]


def sounds(options: PowerOptions) -> list[tuple[SetPiece, np.ndarray, MotionCodec]]:
    """Return the recordings without a video, and the portraits in turn."""
    people = codecs(options.data, size=SIZE)
    found = enumerate(sound_pieces(options.data, options.per_recording))
    return [(piece, sound, people[place % len(people)]) for place, (piece, sound) in found]


def for_each(items: Sequence[Work], work: Callable[[Work], object], what: str) -> None:
    """Work on all items, and log how many are done and how long the others will take.

    An item that cannot be worked on is logged and left out; if none can, the last reason is raised.
    """
    begin = logged = time.monotonic()
    failures = 0
    for place, item in enumerate(progress(items, len(items), what), 1):
        try:
            work(item)
        except BadInput as error:
            failures += 1
            log(f"Left out: {error}")
            if failures == len(items):
                raise
        now = time.monotonic()
        if now - logged > LOG_SECONDS or place == len(items):
            left = (now - begin) / place * (len(items) - place)
            log(f"{place} of {len(items)} {what}, about {left / 60:.0f} min left")
            logged = now
