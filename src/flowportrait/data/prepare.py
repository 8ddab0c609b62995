"""Prepare a training corpus from videos, over several processes or machines, resumable.

    videos ─► shots ─► face tracks ─► clips (landmarks, blendshapes, mouth, 16 kHz sound, speech) ─► gates ─► kept
                                                                                                      └─► counted

``clips/NAME.safetensors`` is read by training. ``pictures/NAME.jpg`` shows every clip, also a rejected one, to people.
``crops/NAME.mp4`` are videos of faces, for the training of networks that draw.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from flowportrait.data.corpus import (
    CorpusIndex,
    FaceClip,
    Record,
    SourceVideo,
    corpus_records,
    count_rejections,
    find_sources,
    read_records,
    write_shards,
)
from flowportrait.data.dataset_note import write_dataset_note
from flowportrait.data.extract import extract_clips
from flowportrait.data.quality_gates import QualityGates
from flowportrait.files import atomic_write
from flowportrait.media.video import FPS, iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.parallel import SPAWN, Workers, parallel_map

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized


# --- Face videos ------------------------------------------------------------------------


def write_face_crop(video: Path, clip: FaceClip, start: int, size: int, target: Path) -> None:
    """Write the square ``clip.crop`` of a video as an mp4 with the clip's sound.

    A landmark at ``p`` in the video is at ``(p − corner + 0.5) · size / side − 0.5`` in the crop.

    Args:
        video: the source video.
        clip: the clip; its ``crop`` is known.
        start: the clip's first frame in the video.
        size: side of the mp4 in px.
        target: its path.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    frames = islice(iter_frames(video), start, start + len(clip))
    write_video(target, _crop_frames(frames, clip, size), clip.audio)


def _crop_frames(frames: Iterator[np.ndarray], clip: FaceClip, size: int) -> Iterator[np.ndarray]:
    assert clip.crop is not None
    left, top, side = (int(value) for value in clip.crop)
    for frame in frames:
        height, width = frame.shape[:2]
        # Beyond the frame its edge is repeated.
        rows = np.arange(top, top + side).clip(0, height - 1)
        columns = np.arange(left, left + side).clip(0, width - 1)
        square = frame[rows][:, columns]
        interpolation = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
        yield cv2.resize(square, (size, size), interpolation=interpolation)


# --- Preparation over several processes -------------------------------------------------

SharedCounter: TypeAlias = "Synchronized[int]"
"""A number that the processes of a run share."""

MAX_VIDEOS_PER_PROCESS = 200
"""Videos after which a process is replaced: even closed trackers leak about a megabyte each."""
_frames_read: SharedCounter | None = None
"""In a worker: how many frames all workers have read so far."""


@dataclass(frozen=True)
class PreparationConfig:
    """Settings of a preparation.

    Attributes:
        layout: ``auto``, ``folders``, or a layout's name (``data.corpus``).
        hold_out: share of speakers for the split ``dev``.
        gates: limits for clips.
        crops: side in pixels of face videos that are written as well, 0 for none.
        shard_mb: size of WebDataset shards, 0 for none.
        workers: processes, by default one for each core.
        ray: address of a Ray cluster whose machines prepare the videos; ``workers`` is not used then.
    """

    layout: str = "auto"
    hold_out: float = 0.0
    gates: QualityGates = field(default_factory=QualityGates)
    crops: int = 0
    shard_mb: int = 0
    workers: int | None = None
    ray: str | None = None


def prepare_corpus(inputs: Sequence[Path], output: Path, plan: PreparationConfig | None = None) -> dict[str, Any]:
    """Prepare every video in ``inputs`` into the corpus ``output``.

    Returns:
        Counts of ``clips`` and ``rejected``, the latter by reason, hours kept, and the speed of this run in seconds of
        video per second.

    Raises:
        BadInput: see ``find_sources`` and ``parallel_map``.
    """
    plan = plan or PreparationConfig()
    sources = find_sources(inputs, plan.layout, plan.hold_out)
    output.mkdir(parents=True, exist_ok=True)
    started, footage = time.monotonic(), 0.0
    with CorpusIndex(output) as index:
        todo = [source for source in sources if source.name not in index.done]
        frame_counter = SPAWN.Value("q", 0)
        results = _prepare_each(todo, output, plan, frame_counter)
        with _progress(frame_counter) as display, closing(results):
            bar = display.add_task("preparing", total=sum(map(_size_in_bytes, todo)), note="")
            for source, (records, seconds) in zip(todo, results, strict=True):
                index.add(source.name, seconds, records)
                if plan.ray is not None:  # the machines of a cluster share no counter
                    frame_counter.value += round(seconds * FPS)
                footage += seconds
                speed = footage / (time.monotonic() - started)
                display.update(bar, advance=_size_in_bytes(source), note=f"{source.name}, {speed:.1f} × real time")
    elapsed = time.monotonic() - started
    kept = corpus_records(output)
    result = {
        "clips": len(kept),
        "rejected": sum(1 for _ in read_records(output / "rejected.jsonl")),
        "reasons": count_rejections(output),
        "hours": round(sum(record["frames"] for record in kept) / 25 / 3600, 3),
        "real_time": round(footage / elapsed, 2) if footage else None,
    }
    write_dataset_note(output, inputs)
    if plan.shard_mb:
        result["shards"] = len(write_shards(output, plan.shard_mb))
    return result


def _prepare_each(
    todo: list[SourceVideo], output: Path, plan: PreparationConfig, frame_counter: SharedCounter | None = None
) -> Generator[tuple[list[Record], float]]:
    """Yield records and seconds of every video, in order; processes of this machine count the frames they read."""
    workers = Workers(
        processes=plan.workers or os.cpu_count() or 1,
        ray=plan.ray,
        initialize=partial(_initialize_worker, frame_counter),
        initialize_ray=partial(_initialize_worker, None),
        items_per_process=MAX_VIDEOS_PER_PROCESS,
        output=output,
    )
    yield from parallel_map(
        partial(prepare_video, output=output.absolute(), plan=plan), todo, workers, lambda source: source.path
    )


def _initialize_worker(frame_counter: SharedCounter | None) -> None:
    """Limit a worker to one core; Ctrl-C is handled by the parent process."""
    global _frames_read
    _frames_read = frame_counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _count_frame() -> None:
    """Add one to the frames that the processes of this run have read."""
    if _frames_read is not None:
        with _frames_read.get_lock():
            _frames_read.value += 1


def prepare_video(source: SourceVideo, output: Path, plan: PreparationConfig) -> tuple[list[Record], float]:
    """Prepare one video and return its records and its length in seconds; any error is recorded as its rejection."""
    try:
        candidates, seconds = extract_clips(source, plan.gates, _count_frame)
        for candidate in candidates:
            name = str(candidate.record["name"])
            if candidate.picture is not None:
                _write_picture(output / "pictures" / f"{name}.jpg", candidate.picture)
            if candidate.clip is not None and "rejected" not in candidate.record:
                target = output / "clips" / f"{name}.safetensors"
                target.parent.mkdir(parents=True, exist_ok=True)
                candidate.clip.save(target)
                if plan.crops:
                    start = round(candidate.record["start"] * 25)
                    write_face_crop(source.path, candidate.clip, start, plan.crops, output / "crops" / f"{name}.mp4")
    except Exception as error:
        rejected = {"name": source.name, "speaker": source.speaker, "split": source.split, "source": source.name}
        return [rejected | {"reason": "failed", "rejected": f"{source.path}: {type(error).__name__}: {error}"}], 0.0
    return [candidate.record for candidate in candidates], seconds


def _write_picture(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _, content = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    with atomic_write(path) as partial:
        partial.write_bytes(content.tobytes())


def _size_in_bytes(source: SourceVideo) -> int:
    return source.path.stat().st_size if source.path.is_file() else 0


class _SecondsRead(ProgressColumn):
    """A progress column with the seconds of video that all processes have read, which moves during a long video."""

    def __init__(self, frame_counter: SharedCounter) -> None:
        super().__init__()
        self._frames = frame_counter

    def render(self, task: Task) -> Text:
        return Text(f"{self._frames.value / FPS:.0f} s of video seen")


def _progress(frame_counter: SharedCounter) -> Progress:
    console = Console(stderr=True)
    share, note = TextColumn("{task.percentage:.0f} %"), TextColumn("{task.fields[note]}")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), share, TimeRemainingColumn(),
               _SecondsRead(frame_counter), note)  # fmt: skip
    return Progress(*columns, console=console, disable=not console.is_terminal)
