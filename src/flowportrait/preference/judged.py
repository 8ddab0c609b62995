"""Pairs from two score tables of the same clips: the judge's verdicts on system A and on system B.

    A  where  score_a − score_b > band,   B where < −band,   tie in between

The band is what the judge's own score moves by when the same clip is shown again (its test–retest noise).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowportrait.errors import BadInput
from flowportrait.preference.pairs import HIGHEST, LOWEST, Aspect, Label, Pair

NAMES: Mapping[str, Aspect] = {
    "lip_sync": "sync", "sync": "sync", "expressiveness": "expression", "expression": "expression",
    "motion": "motion", "overall": "overall",
}  # fmt: skip
"""The judge's aspects under the names that pairs use."""

Table = dict[str, dict[Aspect, float]]


def read_scores(path: Path) -> Table:
    """Clip → aspect → 1 … 5, from a report of ``judge score`` or its list of verdicts alone: ``{"file", "aspects":
    {name: {"score"}}}`` (or a plain number for the aspect). What could not be judged is left out.

    Raises:
        BadInput: not such a file, a clip listed twice, or a score outside 1 … 5.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path} cannot be read as the judge's scores: give a report of `flowportrait judge score`."
        ) from error
    if isinstance(rows, dict):
        rows = rows.get("verdicts")
    if not isinstance(rows, list):
        raise BadInput(f"{path} holds no list of verdicts: give the report that `flowportrait judge score` wrote.")
    table: Table = {}
    for number, row in enumerate(rows, 1):
        whole = isinstance(row, dict) and isinstance(row.get("file"), str) and isinstance(row.get("aspects"), dict)
        if not whole:
            raise BadInput(f"{path}, entry {number}: a verdict has 'file' and 'aspects'.")
        name = Path(row["file"]).name
        if name in table:
            raise BadInput(f"{path}, entry {number}: {name} is listed twice; keep one verdict of each clip.")
        table[name] = _scores(row, path, number)
    return table


def _scores(row: dict[str, Any], path: Path, number: int) -> dict[Aspect, float]:
    found: dict[Aspect, float] = {}
    for name, given in [*row["aspects"].items(), ("overall", row.get("overall"))]:
        score = given.get("score") if isinstance(given, dict) else given
        if score is None:
            continue
        if name not in NAMES:
            raise BadInput(f"{path}, entry {number}: unknown aspect '{name}'; known are {', '.join(NAMES)}.")
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not LOWEST <= score <= HIGHEST:
            raise BadInput(f"{path}, entry {number}: the score {score!r} of {name} does not lie between 1 and 5.")
        found[NAMES[name]] = float(score)
    return found


def pairs_from_scores(
    a: Table, b: Table, band: float, judge: str, folders: tuple[str, str] = ("a", "b")
) -> tuple[list[Pair], list[str]]:
    """Pairs of the clips that both tables score, and the names of those that only one does.

    band: points within which it is a tie; folders: where the clips of each table lie.

    Raises:
        BadInput: a negative band, or no clip in both tables.
    """
    if not band >= 0:
        raise BadInput(f"--tie-band {band} is not possible: it must be 0 or more points.")
    common = sorted(a.keys() & b.keys())
    if not common:
        raise BadInput("The two score tables have no clip name in common: judge the same prompts with both systems.")
    pairs = []
    for name in common:
        shared = [aspect for aspect in a[name] if aspect in b[name]]
        if not shared:
            continue
        pairs.append(
            Pair(
                prompt=Path(name).stem,
                a=f"{folders[0]}/{name}",
                b=f"{folders[1]}/{name}",
                aspects={aspect: label(a[name][aspect] - b[name][aspect], band) for aspect in shared},
                points={"a": a[name], "b": b[name]},
                source="judge",
                annotator=judge,
            )
        )
    return pairs, sorted(a.keys() ^ b.keys())


def label(difference: float, band: float) -> Label:
    """A's score minus B's as a label."""
    if abs(difference) <= band:
        return "tie"
    return "A" if difference > 0 else "B"
