"""Measure the videos of several systems, in one process, in several, or on several machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flowportrait.errors import BadInput
from flowportrait.evaluation.measure import VideoMetrics, measure_video
from flowportrait.evaluation.networks import load_evaluation_networks
from flowportrait.parallel import Workers, parallel_map


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
    ray: str | None = None,
) -> Measurements:
    """Measure all videos of all systems.

    Args:
        systems: videos by system.
        cache: folder of cached tracks.
        workers: number of processes.
        joins: frames at which clips are joined, by clip.
        networks: folder with the networks of the field.
        ray: address of a Ray cluster whose machines measure the videos; ``workers`` is not used then.

    Raises:
        BadInput: see ``parallel_map``.
    """
    measured = Measurements({system: {} for system in systems})
    jobs = [(system, file) for system, files in systems.items() for file in files]
    each = [(file, tuple((joins or {}).get(file.stem, ()))) for _, file in jobs]
    import torch

    # As many threads as here, so that sums are rounded alike.
    threads = partial(torch.set_num_threads, torch.get_num_threads())
    processes = workers if workers > 1 and len(jobs) > 1 else 0
    where = Workers(processes=processes, ray=ray, initialize_ray=threads)
    results = parallel_map(
        partial(_measure_or_reason, cache=cache, networks=networks), each, where, lambda one: one[0]
    )  # fmt: skip
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("measuring", total=len(jobs))
        for (system, file), result in zip(jobs, results, strict=True):
            if isinstance(result, str):
                measured.excluded.append({"system": system, "file": file.name, "reason": result})
            else:
                measured.metrics[system][file.stem] = result
            progress.advance(bar)
    return measured


def _measure_or_reason(job: tuple[Path, tuple[int, ...]], cache: Path, networks: Path | None) -> VideoMetrics | str:
    """Return the metrics of a video with its joins, or the reason why it cannot be measured."""
    file, joins = job
    try:
        return measure_video(file, cache, load_evaluation_networks(networks), joins)
    except BadInput as error:
        return str(error)
