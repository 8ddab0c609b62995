"""Measure finished videos of one or several systems, compare them, and write the report."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from flowportrait.errors import BadInput
from flowportrait.evaluate.compare import compare
from flowportrait.evaluate.measure import Row, measure
from flowportrait.evaluate.report import write_report


def evaluate_videos(
    systems: dict[str, list[Path]],
    output: Path,
    baseline: str | None = None,
    *,
    title: str = "Talking portraits, measured",
    costs: dict[str, float] | None = None,
    curves: list[dict[str, float]] | None = None,
    notes: list[str] | None = None,
    videos: dict[str, Path] | None = None,
) -> dict[str, object]:
    """Measure every video and write metrics.json, metrics.csv and report.html into ``output``.

    Videos of the same file name in different systems are pairs; a system named ``real`` is the ground truth.
    costs are seconds of work per second of video; videos are shown side by side (default: one measured clip
    of each system). Returns a JSON-able summary with the paths written.

    Raises:
        BadInput: nothing to measure, an unknown baseline, two videos of one name in a system, or a broken
        file.
    """
    if not any(systems.values()):
        raise BadInput("There is nothing to evaluate: give at least one video file.")
    if baseline is not None and baseline not in systems:
        raise BadInput(f"The baseline '{baseline}' is not among the systems {', '.join(systems)}.")
    for system, files in systems.items():
        names = [file.name for file in files]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise BadInput(
                f"System '{system}' has two videos named {twice}: rename one, names tell clips apart."
            )
    output.mkdir(parents=True, exist_ok=True)
    comparison = compare(_measure_all(systems, output / ".tracked", costs or {}), baseline)
    comparison.write(output)
    report = write_report(
        output / "report.html",
        title=title,
        comparison=comparison,
        videos=videos or example_videos(systems),
        curves=curves,
        notes=notes or [],
    )
    written = {name: str(output / name) for name in ("metrics.json", "metrics.csv")}
    return comparison.summary() | {"report": str(report), **written}


def _measure_all(
    systems: dict[str, list[Path]], cache: Path, costs: dict[str, float]
) -> dict[str, dict[str, Row]]:
    rows: dict[str, dict[str, Row]] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("measuring", total=sum(map(len, systems.values())))
        for system, files in systems.items():
            rows[system] = {}
            for file in files:
                row = measure(file, cache)
                rows[system][file.stem] = row | (
                    {"seconds_per_second": costs[system]} if system in costs else {}
                )
                progress.advance(bar)
    return rows


def example_videos(systems: dict[str, list[Path]]) -> dict[str, Path]:
    """One video of each system, of the same clip where all have one."""
    stems = [{file.stem for file in files} for files in systems.values() if files]
    common = sorted(set.intersection(*stems))
    chosen = {}
    for system, files in systems.items():
        same = [file for file in files if common and file.stem == common[0]]
        if files:
            chosen[system] = (same or files)[0]
    return chosen
