"""Preparation of footage measured, and the way of a newcomer from a clone to a first video."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.material import Photo, Speech, dev_records, load_clip, spread_evenly
from benchmarks.record import Record
from benchmarks.timing import stopwatch
from flowportrait.commands.options import OptionalPath
from flowportrait.data.corpus import SourceVideo
from flowportrait.data.extract import extract_clips
from flowportrait.data.prepare import PreparationConfig, prepare_corpus, prepare_video
from flowportrait.data.quality_gates import MIN_SYNC_FRAMES, QualityGates, sync_margin
from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLES_PER_FRAME
from flowportrait.media.faces import FaceTracker
from flowportrait.media.video import iter_frames


@dataclass(frozen=True)
class PrepareOptions:
    """Measure how fast videos become a corpus, and which clips the sync gate rejects.

    The parts: gate, clips of unseen speakers with their own sound, with another clip's sound, and with their own sound
    late, which should be rejected; tracking, frames per second of one core, and decoding alone; memory, what a process
    keeps after many videos; warm, seconds of video per second without start-up, by kind of video; speed, the whole
    command with start-up.
    """

    data: OptionalPath = None
    """Folder of footage, for all parts but gate."""
    corpus: OptionalPath = None
    """Prepared corpus with a split dev, for gate."""
    part: tuple[Literal["gate", "tracking", "memory", "warm", "speed"], ...] = ("tracking", "memory", "warm", "speed")
    """Parts to measure."""
    workers: int = 2
    """Processes of the whole command."""
    clips: int = 26
    """Short clips of each kind, evenly spaced, for warm and speed."""
    repeats: int = 40
    """Videos for memory."""


def prepare(options: PrepareOptions, record: Record) -> None:
    if "gate" in options.part:
        if options.corpus is None:
            raise BadInput("The part gate needs --corpus.")
        _measure_gate(options.corpus, record)
    if options.part == ("gate",):
        return
    if options.data is None:
        raise BadInput(f"The parts {', '.join(options.part)} need --data with footage.")
    kinds = {
        name: spread_evenly(sorted(options.data.glob(f"{name}/*.mp4")), options.clips) for name in ("anchors", "grid")
    }
    whole = sorted(options.data.glob("clips/*.mp4"))
    if not (whole and all(kinds.values())):
        raise BadInput(f"{options.data} needs videos in the folders clips, anchors and grid.")
    long = [path for path in whole if "60s" not in path.name]
    if "tracking" in options.part:
        for path in whole:
            _measure_tracking(path, record)
    if "memory" in options.part:
        _measure_memory(kinds["anchors"][0], options.repeats, record)
    if "warm" in options.part:
        _measure_warm(kinds | {path.stem: [path] for path in long}, record)
    if "speed" in options.part:
        _measure_command([*long, *kinds["grid"], *kinds["anchors"]], options.workers, record)


def _measure_gate(corpus: Path, record: Record) -> None:
    records = [record for record in dev_records(corpus) if record["frames"] >= MIN_SYNC_FRAMES]
    if not records:
        raise BadInput(f"{corpus} has no clips of the split dev with {MIN_SYNC_FRAMES} frames or more.")
    clips = [load_clip(corpus, one["name"]) for one in records]
    least, half = QualityGates().sync, len(clips) // 2
    late = [replace(clip, audio=np.roll(clip.audio, 6 * SAMPLES_PER_FRAME)) for clip in clips]
    swapped = [
        replace(clip, audio=np.resize(clips[(place + half) % len(clips)].audio, clip.audio.shape))
        for place, clip in enumerate(clips)
    ]
    for system, group in (("own sound", clips), ("another clip's sound", swapped), ("own sound 6 frames late", late)):
        margins = np.array([sync_margin(clip)[0] for clip in group])
        rejected = 100 * float(np.mean(margins < least))
        record.add(system, "rejected", rejected, unit="%", group="sync gate", n=len(clips))
        record.add(system, "median margin", float(np.median(margins)), group="sync gate", n=len(clips))


def _measure_tracking(path: Path, record: Record, frames: int = 250) -> None:
    with stopwatch() as decoding:
        count = sum(1 for _ in islice(iter_frames(path), frames))
    with stopwatch() as tracking, FaceTracker() as tracker:
        tracker.track(islice(iter_frames(path), frames))
    height, width = next(iter(iter_frames(path))).shape[:2]
    for metric, spent in (("decoding and tracking", tracking), ("decoding alone", decoding)):
        record.add(f"{path.stem}, {width}x{height}", metric, count / spent.processor, unit="frames/s of a core",
                   group="tracking", n=count)  # fmt: skip


def _measure_memory(path: Path, repeats: int, record: Record) -> None:
    sizes = []
    for _ in range(repeats):
        extract_clips(SourceVideo(path, "a", "s", "train"), QualityGates())
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20)
    first = min(9, repeats - 1)  # what is loaded once is loaded by then
    growth = (sizes[-1] - sizes[first]) / (repeats - 1 - first) if repeats - 1 > first else None
    record.add(f"after {repeats} videos", "resident", sizes[-1], unit="MB", group="memory")
    record.add(f"after {repeats} videos", "growth", growth, unit="MB a video", group="memory")


def _measure_warm(kinds: dict[str, list[Path]], record: Record) -> None:
    total_length, total_spent = 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:

        def prepare_one(path: Path) -> float:
            return prepare_video(SourceVideo(path, path.stem, "s", "train"), Path(folder), PreparationConfig())[1]

        prepare_one(next(iter(kinds.values()))[0])
        for kind, paths in kinds.items():
            with stopwatch() as spent:
                length = sum(prepare_one(path) for path in paths)
            total_length, total_spent = total_length + length, total_spent + spent.processor
            record.add(kind, "two cores", 2 * length / spent.processor, unit="× real time", group="warm", n=len(paths))
    record.add("all", "two cores", 2 * total_length / total_spent, unit="× real time", group="warm")


def _measure_command(footage: list[Path], workers: int, record: Record) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for path in footage:
            shutil.copy(path, folder / "in" / path.name)
        with stopwatch(children=True) as spent:
            result = prepare_corpus([folder / "in"], folder / "out", PreparationConfig(workers=workers))
        length = sum(json.loads(row)["seconds"] for row in (folder / "out" / "sources.jsonl").read_text().splitlines())
    system, group = f"{workers} processes, with start-up", "the whole command"
    record.add(system, "video", length, unit="s", group=group)
    record.add(system, "by the clock", length / spent.clock, unit="× real time", group=group)
    record.add(system, "by processor", workers * length / spent.processor, unit="× real time", group=group)
    record.add(system, "clips kept", result["clips"], group=group)
    record.note(f"Rejected: {result['reasons'] or 'none'}.")


# --- A newcomer -------------------------------------------------------------------------


@dataclass(frozen=True)
class NewcomerOptions:
    """Measure the time from a clone to a first video, by the commands of the first tutorial in order.

    ``make install``, then every ``flowportrait`` command of the page, with the photo and the speech as photo.jpg and
    speech.wav. Most of the time of ``make install`` is the download of packages. A command that fails, such as one that
    needs other files, is noted.
    """

    photo: Photo
    """Photo of a face."""
    speech: Speech
    """Recording of speech."""
    repository: str = "."
    """What is cloned."""
    page: Path = Path("docs/tutorials/first-video.md")
    """The tutorial, in the clone."""


def newcomer(options: NewcomerOptions, record: Record) -> None:
    for path in (options.photo, options.speech):
        if not path.is_file():
            raise BadInput(f"There is no file {path}: give a photo and a recording.")
    with tempfile.TemporaryDirectory() as place:
        home = Path(place) / "flowportrait"
        _run("git clone", ["git", "clone", "--quiet", options.repository, str(home)], Path(place), record)
        page = home / options.page
        commands = _find_commands(page.read_text(encoding="utf-8")) if page.is_file() else []
        if not commands:
            raise BadInput(f"{options.page} in {options.repository} has no commands: name the tutorial with --page.")
        shutil.copy(options.photo, home / "photo.jpg")
        shutil.copy(options.speech, home / "speech.wav")
        total = 0.0
        for line in commands:
            begin = "source .venv/bin/activate && " if line.startswith("flowportrait") else ""
            total += _run(line, ["bash", "-c", begin + line], home, record)
        record.add("all commands", "clock", total, unit="s")
        for video in sorted(home.glob("*.mp4")):
            record.add(video.name, "size", video.stat().st_size / 1024, unit="KB", group="videos")


def _find_commands(page: str) -> list[str]:
    """Return ``make install`` and the ``flowportrait`` commands in the code blocks of a page."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", page, re.S) for line in block.splitlines()]
    return [re.split(r"\s+#", line)[0] for line in lines if line.startswith(("make install", "flowportrait "))]


def _run(name: str, command: list[str], folder: Path, record: Record) -> float:
    """Run a command and return its seconds; 0 and a note if it fails."""
    with stopwatch(children=True) as spent:
        done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        record.note(f"{name} ended with {done.returncode}: {reason}")
        return 0.0
    record.add(name, "clock", spent.clock, unit="s")
    record.add(name, "processor", spent.processor, unit="s")
    return spent.clock
