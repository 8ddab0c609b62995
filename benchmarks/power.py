"""An evaluation with power: systems on a set of unseen speakers, and the smallest difference that it could show."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from benchmarks.drawing import codecs, named_checkpoints
from benchmarks.evaluation_set import NEWS, SEEN, SOUND, WILD, SetPiece, build_set, sound_pieces, write_manifest
from benchmarks.material import use_one_thread
from benchmarks.portrait_groups import skin_tone
from benchmarks.power_measure import SetMeter, window_piece
from benchmarks.power_tables import (
    CLOSURE_KEYS,
    FIRST_IDENTITY,
    HEADLINE,
    add_changes,
    add_exaggeration,
    add_groups,
    add_means,
    add_ordering,
    add_positions,
    add_whole_systems,
    write_markdown,
)
from benchmarks.power_videos import (
    BASELINES,
    FACTORS,
    POSITIONS,
    REDRAWN,
    SIZE,
    WINDOW_SECONDS,
    SetVideos,
    exaggerated_name,
    fresh_name,
    long_name,
    minutes_of_sound,
)
from benchmarks.record import Record
from flowportrait.commands.options import OptionalPath
from flowportrait.errors import BadInput
from flowportrait.evaluation.metrics import REAL
from flowportrait.evaluation.networks import load_evaluation_networks
from flowportrait.evaluation.sync_instruments import sync_instruments
from flowportrait.media.video import FPS, iter_frames
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.terminal import log, progress

Work = TypeVar("Work")
LOG_SECONDS = 60.0
"""Time between two lines about the progress."""
SUBSETS = {"unseen speakers": (WILD, NEWS), "in the wild": (WILD,), "news": (NEWS,), "seen man": (SEEN,)}
"""Groups of the set that are reported together."""
INSTRUMENT_FIGURES = ("C at 0", "|offset|", "D", "C of reversed sound")
SOUND_KEYS = ("sync_in_time", "ler", "offset_error", "silent_lip", "mouth_amplitude", "amplitude", "ecs")
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
    instruments: tuple[str, ...] = ("pixels", "pixels-a", "pixels-b")
    """Of lip sync, by name; landmarks where FLOWPORTRAIT_OPENSEEFACE names its network."""
    networks: OptionalPath = None
    """Folder with the networks of the field, as for flowportrait evaluate --networks."""
    stage: tuple[Literal["draw", "measure"], ...] = ("draw", "measure")
    """Draw and track what is missing, measure what is there, or both."""


def power(options: PowerOptions, record: Record) -> None:
    """Draw what is missing, measure everything, and write the tables."""
    use_one_thread()
    known = sync_instruments()
    if unknown := [name for name in options.instruments if name not in known]:
        raise BadInput(f"No instrument of lip sync is named {unknown[0]}: choose from {', '.join(known)}.")
    instruments = {name: known[name] for name in options.instruments}
    networks = load_evaluation_networks(options.networks)
    found = named_checkpoints(options.systems)
    animators = {name: Animator.from_pretrained(checkpoint) for name, checkpoint in found.items()}
    everything, left_out = build_set(options.data)
    pieces = first_of_speakers(everything, options.per_speaker)
    options.output.mkdir(parents=True, exist_ok=True)
    digest = write_manifest(options.output / "manifest.json", pieces, left_out)
    record.note(f"{len(pieces)} pieces of {len({p.speaker for p in pieces})} speakers, set {digest[:12]}.")
    videos = SetVideos(options.data, options.output, animators, everything)
    if "draw" in options.stage:
        make_videos(options, videos, pieces, everything)
    if "measure" not in options.stage:
        return
    meter = SetMeter(videos, networks, instruments)
    if "set" in options.part:
        add_set(meter, pieces, record)
    if "exaggeration" in options.part:
        add_scaled(meter, pieces, options.output, record)
    if "minute" in options.part:
        add_minutes(meter, options, everything, record)
    if "sound" in options.part:
        add_sounds(meter, options, record)
    record.save(options.output / "results.json")
    write_markdown(record, options.output / "tables.md")


# --- Measuring ---


def add_set(meter: SetMeter, pieces: list[SetPiece], record: Record) -> None:
    """Measure the pieces, and add means, changes, order, whole systems and groups."""
    names = list(meter.videos.animators)
    found = meter.measure(pieces, [REAL, REDRAWN, *BASELINES, *names])
    for name, reason in found.left_out.items():
        record.note(f"Left out: {name}: {reason}.")
    pieces = [with_skin_tone(meter, piece) for piece in pieces if piece.name in found.rows[REAL]]
    speakers = {piece.name: piece.speaker for piece in pieces}
    for title, groups in SUBSETS.items():
        members = {piece.name for piece in pieces if piece.group in groups}
        rows = {s: {name: own[name] for name in own if name in members} for s, own in found.rows.items()}
        if not members:
            continue
        count = len({speakers[name] for name in members})
        label = f"{title} ({len(members)} pieces of {count} speaker{'s' * (count > 1)})"
        keys = [*HEADLINE, *(CLOSURE_KEYS if SEEN in groups else ())]
        add_means(record, rows, keys, speakers, label)
        instruments = [f"{one}: {what}" for one in meter.instruments for what in INSTRUMENT_FIGURES]
        add_means(record, rows, instruments, speakers, f"{label}: instruments of lip sync")
        for name in names[1:]:
            add_changes(record, rows[name], rows[names[0]], (name, names[0]), speakers, label)
        if groups == (WILD, NEWS):
            add_ordering(record, rows, speakers, label)
            videos = {s: {name: own[name] for name in own if name in members} for s, own in found.videos.items()}
            for name in names[1:]:
                add_whole_systems(record, videos, (name, names[0]), speakers, label)
    unseen = [piece for piece in pieces if piece.group in (WILD, NEWS)]
    add_groups(record, found.rows, unseen, [REAL, *names])


def with_skin_tone(meter: SetMeter, piece: SetPiece) -> SetPiece:
    """Return a piece with the skin tone of its first frame, which a program finds in the picture."""
    tracked = meter.videos.tracks(REAL, piece.name)
    if not tracked.valid[0]:
        return piece
    tone = skin_tone(next(iter(iter_frames(meter.videos.path(REAL, piece.name)))), tracked.landmarks[0])
    return replace(piece, labels=piece.labels | {"skin tone": tone}, automatic=("skin tone",))


def add_scaled(meter: SetMeter, pieces: list[SetPiece], output: Path, record: Record) -> None:
    """Measure systems with scaled lips beside all others, on one piece of every unseen speaker."""
    bases = meter.videos.exaggerated
    scaled = [exaggerated_name(base, factor) for base in bases for factor in FACTORS]
    chosen = one_of_each_speaker(pieces)
    found = meter.measure(chosen, [REAL, REDRAWN, *BASELINES, *meter.videos.animators, *scaled])
    if found.rows[REAL]:
        speakers = {piece.name: piece.speaker for piece in chosen}
        add_exaggeration(record, found, bases, speakers, output / "frontier.svg")


def add_minutes(meter: SetMeter, options: PowerOptions, everything: list[SetPiece], record: Record) -> None:
    """Measure windows of a minute beside the same sound generated on its own."""
    systems = list(meter.videos.animators)
    names = [name for system in systems for name in (long_name(system), fresh_name(system))]
    windows: dict[int, Any] = {}
    speakers: dict[str, str] = {}
    first: dict[str, dict[str, np.ndarray]] = {}
    for start in POSITIONS:
        pieces = [
            replace(window_piece(minute, start * FPS, WINDOW_SECONDS * FPS), name=f"{minute.name}@{start}")
            for minute, _ in minutes_of_sound(options.data, everything)
        ]
        found = meter.measure(pieces, names, real=False)
        speakers |= {piece.name: piece.speaker for piece in pieces}
        for system in names:
            base = system.partition(",")[0]
            for name, video in found.videos[system].items():
                mean, minute = video.features.identity.mean(0), name.partition("@")[0]
                start_mean = first.setdefault(base, {}).setdefault(minute, mean)
                norm = float(np.linalg.norm(mean) * np.linalg.norm(start_mean))
                found.rows[system][name][FIRST_IDENTITY] = float(mean @ start_mean) / norm
        windows[start] = found.rows
    add_positions(record, windows, systems, speakers)


def add_sounds(meter: SetMeter, options: PowerOptions, record: Record) -> None:
    """Measure recordings without a video: nothing true is known of their lips."""
    pieces = [piece for piece, _ in sound_pieces(options.data, options.per_recording)]
    found = meter.measure(pieces, [*meter.videos.animators, "still", "loudness jaw"], real=False)
    speakers = {piece.name: piece.speaker for piece in pieces}
    for source in sorted({piece.labels["source"] for piece in pieces}):
        members = {piece.name for piece in pieces if piece.labels["source"] == source}
        rows = {s: {name: own[name] for name in own if name in members} for s, own in found.rows.items()}
        add_means(record, rows, SOUND_KEYS, speakers, f"sound only: {source} ({len(members)} pieces)")
    names = list(meter.videos.animators)
    for name in names[1:]:
        add_changes(record, found.rows[name], found.rows[names[0]], (name, names[0]), speakers, "sound only")


# --- Drawing ---


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
