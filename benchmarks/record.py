"""One schema for the results of every measurement.

    record.add("rl", "LSE-C", estimate)          one figure of one system, with its 95 % interval
    record.save(path)                            figures, command, version, commit and machine, as JSON

A file of results says everything that its reader needs to repeat the measurement.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from flowportrait import __version__
from flowportrait.evaluation.statistics import Estimate
from flowportrait.files import write_json
from flowportrait.terminal import log, print_table

ROOT = Path(__file__).parents[1]
MOST_COLUMNS = 8
"""A table with more metrics than this has a line per metric and a column per system."""


@dataclass(frozen=True)
class Row:
    """One figure of one system."""

    system: str
    """What was measured: a checkpoint, a method, a baseline, a ceiling."""
    metric: str
    value: float | None
    """None where there is nothing to measure."""
    low: float | None = None
    """Lower end of the 95 % interval."""
    high: float | None = None
    n: int | None = None
    """Number of clips, people or runs that the interval is over."""
    unit: str = ""
    group: str = ""
    """Part of the measurement, shown as a table of its own: a language, a size, a kind of sound."""


@dataclass
class Record:
    """The results of one measurement.

    Args:
        measurement: its name in ``python -m benchmarks``.
        command: the command line that repeats it.
    """

    measurement: str
    command: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    started: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))

    def add(
        self, system: str, metric: str, value: float | Estimate | None, *, unit: str = "", group: str = "",
        n: int | None = None,
    ) -> None:  # fmt: skip
        """Add one figure and print it, so that a long measurement shows what it has found so far."""
        if isinstance(value, Estimate):
            count = value.clips if value.speakers is None else value.speakers
            row = Row(system, metric, float(value.mean), value.low, value.high, count, unit, group)
        else:
            row = Row(system, metric, None if value is None else float(value), n=n, unit=unit, group=group)
        self.rows.append(row)
        log(f"{f'{group}: ' if group else ''}{system}: {metric} {format_row(row)}")

    def note(self, text: str) -> None:
        """Add a sentence that belongs to the figures."""
        self.notes.append(text)
        log(text)

    def save(self, path: Path) -> None:
        """Write the results as JSON; an interrupted call leaves the earlier file."""
        now = datetime.datetime.now(datetime.UTC)
        write_json(
            path,
            {
                "measurement": self.measurement,
                "command": self.command,
                "date": self.started.date().isoformat(),
                "seconds": round((now - self.started).total_seconds(), 1),
                "version": __version__,
                "commit": _commit(),
                "machine": describe_machine(),
                "rows": [dataclasses.asdict(row) for row in self.rows],
                "notes": self.notes,
            },
        )

    def print(self) -> None:
        """Print a table for every group: a line per system and a column per metric, or the reverse for many metrics."""
        from rich.markup import escape
        from rich.table import Table

        for group in dict.fromkeys(row.group for row in self.rows):
            rows = [row for row in self.rows if row.group == group]
            cells = {(row.system, _title(row)): format_row(row, unit=False) for row in rows}
            systems, metrics = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
            lines, columns = systems, metrics
            if len(metrics) > MOST_COLUMNS:
                lines, columns = metrics, systems
                cells = {(metric, system): text for (system, metric), text in cells.items()}
            table = Table(title=escape(group) or None, title_justify="left")
            table.add_column("")
            for column in columns:
                table.add_column(escape(column), justify="right")
            for line in lines:
                table.add_row(escape(line), *(cells.get((line, column), "") for column in columns))
            print_table(table)
        for note in self.notes:
            print(note)


def _title(row: Row) -> str:
    """Return the metric with its unit, as in the head of a table."""
    return f"{row.metric} [{row.unit}]" if row.unit else row.metric


def format_row(row: Row, unit: bool = True) -> str:
    """Return a figure with its interval: ``0.158 (0.141…0.175) ms``."""
    if row.value is None:
        return "–"
    text = _format_number(row.value)
    if row.low is not None and row.high is not None:
        text += f" ({_format_number(row.low)}…{_format_number(row.high)})"
    return f"{text} {row.unit}" if unit and row.unit else text


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def describe_machine() -> dict[str, str | int | None]:
    """Return what timings depend on: processor, cores, system, Python and torch."""
    import torch

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _commit() -> str | None:
    """Return the commit of the working copy, with a plus where files differ from it; None outside a repository."""
    try:
        words = ["git", "describe", "--always", "--dirty=+", "--abbrev=12"]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
