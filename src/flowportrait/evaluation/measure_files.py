"""Measure the videos of several systems, in one process or in several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flowportrait.errors import BadInput
from flowportrait.evaluation.measure import VideoMetrics, measure_video
from flowportrait.evaluation.networks import load_evaluation_networks


@dataclass
class Measurements:
    """Metrics by system and clip, and system, file and reason of every file that could not be measured."""

    metrics: dict[str, dict[str, VideoMetrics]] = field(default_factory=dict)
    excluded: list[dict[str, str]] = field(default_factory=list)


def measure_videos(
    systems: dict[str, list[Path]],
    cache: Path,
    workers: int = 1,
    joins: Mapping[str, Sequence[int]] | None = None,
    networks: Path | None = None,
) -> Measurements:
    """Measure all videos of all systems.

    Args:
        systems: videos by system.
        cache: folder of cached tracks.
        workers: number of processes.
        joins: frames at which clips are joined, by clip.
        networks: folder with the networks of the field.
    """
    measured = Measurements({system: {} for system in systems})
    jobs = [(system, file) for system, files in systems.items() for file in files]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("measuring", total=len(jobs))
        for (system, file), result in zip(
            jobs, _measure_each([f for _, f in jobs], cache, workers, joins or {}, networks), strict=True
        ):
            if isinstance(result, str):
                measured.excluded.append({"system": system, "file": file.name, "reason": result})
            else:
                measured.metrics[system][file.stem] = result
            progress.advance(bar)
    return measured


def _measure_each(
    files: list[Path], cache: Path, workers: int, joins: Mapping[str, Sequence[int]], networks: Path | None
) -> Iterator[VideoMetrics | str]:
    joined = [joins.get(file.stem, ()) for file in files]
    if workers <= 1 or len(files) < 2:
        yield from map(_measure_or_reason, files, [cache] * len(files), joined, [networks] * len(files))
        return
    # Spawned, because the threads of torch and mediapipe do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_measure_or_reason, files, [cache] * len(files), joined, [networks] * len(files))


def _measure_or_reason(file: Path, cache: Path, joins: Sequence[int], networks: Path | None) -> VideoMetrics | str:
    """Return the metrics of a video, or the reason why it cannot be measured."""
    try:
        return measure_video(file, cache, load_evaluation_networks(networks), joins)
    except BadInput as error:
        return str(error)
