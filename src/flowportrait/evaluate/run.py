"""Measure finished videos of one or several systems, compare them, and write the report."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flowportrait.errors import BadInput
from flowportrait.evaluate.compare import REAL, Comparison, Row, compare
from flowportrait.evaluate.groups import Labels, by_group
from flowportrait.evaluate.measure import Findings, measure
from flowportrait.evaluate.networks import networks
from flowportrait.evaluate.optical import flow_method
from flowportrait.evaluate.pairs import against_real, perceptual_name
from flowportrait.evaluate.reference import SHIPPED, real_estimates, real_footage
from flowportrait.evaluate.report import write_report
from flowportrait.evaluate.sets import FEWEST, set_figures
from flowportrait.evaluate.theval import LEFT_OUT, TOTAL
from flowportrait.evaluate.tracked import default_cache, track_file


@dataclass
class Measured:
    """findings[system][clip]; excluded: system, file and reason of what could not be measured."""

    findings: dict[str, dict[str, Findings]] = field(default_factory=dict)
    excluded: list[dict[str, str]] = field(default_factory=list)


def evaluate_videos(
    systems: dict[str, list[Path]],
    output: Path,
    baseline: str | None = None,
    *,
    title: str = "Talking portraits, measured",
    costs: dict[str, float] | None = None,
    extra: dict[str, dict[str, Row]] | None = None,
    curves: list[dict[str, float]] | None = None,
    notes: list[str] | None = None,
    videos: dict[str, Path] | None = None,
    cache: Path | None = None,
    workers: int = 1,
    labels: Labels | None = None,
) -> dict[str, Any]:
    """Measure every video and write metrics.json, metrics.csv and report.html into ``output``.

    Videos of the same file name in different systems are pairs; a system named ``real`` is the ground truth. A file
    that cannot be measured is named, counted and left out; the rest is reported. costs are seconds of work per second
    of video; extra[system][clip] are more figures of a clip; videos are shown side by side (default: one measured
    clip of each system). cache: folder of what was seen before (default: the user's cache). workers: processes that
    look at videos. labels[column][clip]: groups that are reported apart. Returns a JSON-able summary with the paths
    written.

    Raises:
        BadInput: nothing to measure, an unknown baseline, two videos of one name in a system, or not one file that
            can be measured.
    """
    _check(systems, baseline)
    output.mkdir(parents=True, exist_ok=True)
    cache = cache or default_cache()
    measured = measure_all(systems, cache, workers)
    if not any(measured.findings.values()):
        raise BadInput(f"None of the videos can be measured. {measured.excluded[0]['reason']}")
    rows = _rows(measured, systems, cache, costs or {}, extra or {})
    comparison = _completed(compare(rows, baseline), measured)
    if labels:
        comparison = replace(comparison, groups=by_group(comparison.rows, labels, comparison.excluded))
    comparison.write(output)
    report = write_report(
        output / "report.html",
        title=title,
        comparison=comparison,
        videos=videos or example_videos(_kept(systems, measured)),
        curves=curves,
        notes=notes or [],
        files={s: {p.stem: p for p in files} for s, files in systems.items()},
    )
    written = {name: str(output / name) for name in ("metrics.json", "metrics.csv")}
    return comparison.summary() | {"report": str(report), **written}


def _check(systems: dict[str, list[Path]], baseline: str | None) -> None:
    if not any(systems.values()):
        raise BadInput("There is nothing to evaluate: give at least one video file.")
    if baseline is not None and baseline not in systems:
        raise BadInput(f"The baseline '{baseline}' is not among the systems {', '.join(systems)}.")
    for system, files in systems.items():
        names = [file.stem for file in files]
        twice = next((file.name for file in files if names.count(file.stem) > 1), None)
        if twice:
            raise BadInput(f"System '{system}' has two videos named {twice}: rename one, names tell clips apart.")


def measure_all(systems: dict[str, list[Path]], cache: Path, workers: int = 1) -> Measured:
    """Findings of every video that can be measured, and the names of the rest."""
    measured = Measured({system: {} for system in systems})
    jobs = [(system, file) for system, files in systems.items() for file in files]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("measuring", total=len(jobs))
        for (system, file), found in zip(jobs, _each([file for _, file in jobs], cache, workers), strict=True):
            if isinstance(found, str):
                measured.excluded.append({"system": system, "file": file.name, "reason": found})
            else:
                measured.findings[system][file.stem] = found
            progress.advance(bar)
    return measured


def _each(files: list[Path], cache: Path, workers: int) -> Iterator[Findings | str]:
    if workers <= 1 or len(files) < 2:
        yield from (_measured(file, cache) for file in files)
        return
    # Spawned, because threads of torch and mediapipe do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_measured, files, [cache] * len(files))


def _measured(file: Path, cache: Path) -> Findings | str:
    """Findings, or why there are none."""
    try:
        return measure(file, cache)
    except BadInput as error:
        return str(error)


def _rows(
    measured: Measured,
    systems: dict[str, list[Path]],
    cache: Path,
    costs: dict[str, float],
    extra: dict[str, dict[str, Row]],
) -> dict[str, dict[str, Row]]:
    """Figures per system and clip, with those that need the real clip."""
    paths = {system: {file.stem: file for file in files} for system, files in systems.items()}
    real = measured.findings.get(REAL, {})
    rows: dict[str, dict[str, Row]] = {}
    for system, clips in measured.findings.items():
        rows[system] = {}
        for clip, found in clips.items():
            row = found.row | extra.get(system, {}).get(clip, {})
            if system in costs:
                row["seconds_per_second"] = costs[system]
            if system != REAL and clip in real:
                mine, truth = (track_file(paths[name][clip], cache) for name in (system, REAL))
                row |= against_real(mine, truth, found.features, real[clip].features)
            rows[system][clip] = row
    return rows


def _completed(comparison: Comparison, measured: Measured) -> Comparison:
    """With the figures of whole systems, the ground-truth row, what was left out, and what measured it."""
    whole = set_figures(measured.findings)
    estimates = {system: found | whole.get(system, {}) for system, found in comparison.estimates.items()}
    remarks = [r for clips in measured.findings.values() for found in clips.values() for r in found.remarks]
    remarks += _lengths(comparison.rows)
    if REAL not in comparison.rows and (shipped := real_estimates()):
        estimates[SHIPPED] = shipped
        remarks.append(f"No real clips were given: '{SHIPPED}' is {real_footage()['about']}.")
    if 0 < len(comparison.rows.get(REAL, {})) < FEWEST:
        remarks.append(f"Fewer than {FEWEST} real clips: ECS and THEval are held against the shipped footage instead.")
    dlib = any(found.network == "dlib68" for clips in measured.findings.values() for found in clips.values())
    used = {
        "face network of ECS": "dlib, 68 points" if dlib else "MediaPipe (the rewards' own: install dlib-bin)",
        "optical flow (TFI)": flow_method().name,
        "perceptual distance": perceptual_name(),
        "left out of THEval": f"{', '.join(LEFT_OUT)}; the total is {TOTAL}",
    }
    return replace(
        comparison,
        estimates=estimates,
        excluded=measured.excluded,
        remarks=remarks,
        networks=networks().names() | used,
    )


def _lengths(rows: dict[str, dict[str, Row]]) -> list[str]:
    """Clips that are not as long as the real one of their name."""
    found = []
    for system, clips in rows.items():
        for clip, row in clips.items():
            real = rows.get(REAL, {}).get(clip)
            if real and system != REAL and real["frames"] != row["frames"]:
                found.append(f"{system}/{clip}: {row['frames']} frames, the real clip has {real['frames']}")
    return found


def _kept(systems: dict[str, list[Path]], measured: Measured) -> dict[str, list[Path]]:
    return {s: [f for f in files if f.stem in measured.findings[s]] for s, files in systems.items()}


def example_videos(systems: dict[str, list[Path]]) -> dict[str, Path]:
    """One video of each system, of the same clip where all have one."""
    stems = [{file.stem for file in files} for files in systems.values() if files]
    common = sorted(set.intersection(*stems)) if stems else []
    chosen = {}
    for system, files in systems.items():
        same = [file for file in files if common and file.stem == common[0]]
        if files:
            chosen[system] = (same or files)[0]
    return chosen
