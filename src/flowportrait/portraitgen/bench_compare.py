"""Two results of PortraitBench, picture by picture, and the tests that this takes."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from scipy.stats import binomtest, wilcoxon

from flowportrait.errors import BadInput
from flowportrait.evaluate.compare import MIN_PAIRS

Key = TypeVar("Key", bound=Hashable)
SAME = {"version": "version of the benchmark", "prompts": "set of prompts", "judge": "judge"}


def mcnemar(first: Sequence[bool | None], second: Sequence[bool | None]) -> tuple[float, float]:
    """Exact p that two pictures of a prompt are as often at fault as each other, and the difference of the rates, over
    the pairs in which both could be told."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    only_first, only_second = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    apart = only_first + only_second
    p = float(binomtest(only_first, apart).pvalue) if apart else 1.0
    return p, (only_first - only_second) / max(len(pairs), 1)


def holm(tests: Mapping[Key, float]) -> dict[Key, float]:
    """p values corrected for how many there are, step by step (Holm 1979)."""
    corrected, running = {}, 0.0
    for rank, (key, p) in enumerate(sorted(tests.items(), key=lambda test: test[1])):
        running = min(1.0, max(running, p * (len(tests) - rank)))
        corrected[key] = running
    return corrected


def compare(first: Path, second: Path) -> list[dict[str, Any]]:
    """Differences of two results, first minus second, on the pictures both have.

    Raises:
        BadInput: a file that is no result, or results by another version, prompt set or judge.
    """
    one, other = _read(first), _read(second)
    for key, what in SAME.items():
        if one[key] != other[key]:
            raise BadInput(f"{first} and {second} are by another {what}: run both with the same.")
    shared = [name for name in one["pictures"] if name in other["pictures"]]
    if not shared:
        raise BadInput(f"{first} and {second} have no picture of the same name: nothing can be compared.")
    tests: dict[str, float] = {}
    rows: dict[str, dict[str, Any]] = {}
    mine, theirs = ([found["pictures"][name] for name in shared] for found in (one, other))
    for kind in one["artefacts"]:
        a, b = ([row["artefacts"].get(kind) for row in side] for side in (mine, theirs))
        tests[kind], gap = mcnemar(a, b)
        rows[kind] = {"what": kind, "difference": gap}
    for score in one["scores"]:
        a, b = ([row["scores"].get(score) for row in side] for side in (mine, theirs))
        gaps = np.array([x - y for x, y in zip(a, b, strict=True) if x is not None and y is not None])
        if len(gaps):
            testable = len(gaps) >= MIN_PAIRS and np.any(gaps)
            tests[score] = float(wilcoxon(gaps).pvalue) if testable else 1.0
            rows[score] = {"what": score, "difference": float(gaps.mean())}
    corrected = holm(tests)
    return [row | {"pictures": len(shared), "p": corrected[name]} for name, row in rows.items()]


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        data["pictures"], data["artefacts"], data["scores"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is no result of portraitbench: give a results.json that it wrote.") from error
    return data
