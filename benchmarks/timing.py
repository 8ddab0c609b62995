"""Clocks and memory of measurements, and the comparison of two versions of the package.

Processor time is the measure where there is a choice: other work on the machine changes it least.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.record import ROOT, Record
from flowportrait.errors import BadInput
from flowportrait.evaluation.statistics import Estimate

PACKAGE = "flowportrait"


@dataclass
class Elapsed:
    """Seconds that a block took, known when it has ended."""

    clock: float = 0.0
    processor: float = 0.0
    """User and system time of all threads."""


@contextmanager
def stopwatch(children: bool = False) -> Iterator[Elapsed]:
    """Measure the block.

    Args:
        children: take the processor time of the processes that it starts and awaits, not that of this one.
    """
    result, began, before = Elapsed(), time.monotonic(), _processor(children)
    try:
        yield result
    finally:
        result.clock, result.processor = time.monotonic() - began, _processor(children) - before


def _processor(children: bool) -> float:
    if not children:
        return time.process_time()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def processor_seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Return the least processor time of ``repeats`` calls: other work on the machine only ever adds."""
    times = []
    for _ in range(repeats):
        with stopwatch() as spent:
            work()
        times.append(spent.processor)
    return min(times)


def median_in_turns(
    variants: Mapping[str, Callable[[], object]], repeats: int, clock: bool = False
) -> dict[str, float]:
    """Return the median seconds of every variant; they take turns, so that all see the same machine.

    Args:
        variants: what is called, by name.
        repeats: calls of each.
        clock: wall-clock time, where a disk is waited for, in place of processor time.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, work in variants.items():
            with stopwatch() as spent:
                work()
            times[name].append(spent.clock if clock else spent.processor)
    return {name: median(values) for name, values in times.items()}


def peak_memory() -> float:
    """Return the largest resident memory that this process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- Two versions of the package --------------------------------------------------------


def find_source(version: Path) -> Path:
    """Return the folder of a version that holds the package: a checkout's ``src``, or the folder itself.

    Raises:
        BadInput: neither holds it.
    """
    for folder in (version / "src", version):
        if (folder / PACKAGE / "__init__.py").is_file():
            return folder.resolve()
    raise BadInput(f"--against {version} has no package {PACKAGE}: give a checkout, or its folder src.")


def run_python(words: Sequence[str], source: Path = ROOT / "src") -> Elapsed:
    """Run a fresh interpreter with the package of ``source`` and return what it took.

    Raises:
        BadInput: it failed, with the last line that it wrote.
    """
    path = os.pathsep.join(map(str, (source, source.parent / "weights", ROOT)))
    environment = {**os.environ, "PYTHONPATH": path}
    with stopwatch(children=True) as spent:
        done = subprocess.run([sys.executable, *words], env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise BadInput(f"A measured process with the package of {source} failed: {reason}")
    return spent


def add_comparison(record: Record, system: str, unit: str, now: Sequence[float], before: Sequence[float] = ()) -> None:
    """Add the least of repeated times; with those of another version, which took turns, also the ratio.

    The ratio is below 1 where this version is faster; its interval resamples the repeats.
    """
    record.add(system, "now" if before else "processor", min(now), unit=unit, n=len(now))
    if not before:
        return
    from tools.compare_versions import ratio_with_interval

    record.add(system, "before", min(before), unit=unit, n=len(before))
    ratio, low, high = ratio_with_interval(before, now)
    known = len(now) > 1
    record.add(system, "now / before", Estimate(ratio, low if known else None, high if known else None, len(now)))
