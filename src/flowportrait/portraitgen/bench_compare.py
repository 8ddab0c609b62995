"""Two results of PortraitBench, picture by picture, and the tests that this takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.evaluation.statistics import holm_correction, mcnemar, signed_rank_p

SAME = {"version": "version of the benchmark", "prompts": "set of prompts", "judge": "judge"}


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
            p = signed_rank_p(gaps)
            tests[score] = 1.0 if p is None else p
            rows[score] = {"what": score, "difference": float(gaps.mean())}
    corrected = dict(zip(tests, holm_correction(list(tests.values())), strict=True))
    return [row | {"pictures": len(shared), "p": corrected[name]} for name, row in rows.items()]


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        data["pictures"], data["artefacts"], data["scores"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is no result of portraitbench: give a results.json that it wrote.") from error
    return data
