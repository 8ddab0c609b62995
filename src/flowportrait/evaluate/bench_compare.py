"""Two results files of the benchmark, side by side: is it the same, and if not, where and by how much?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flowportrait.errors import BadInput
from flowportrait.evaluate.metrics import BY_KEY

COMPARED = ("version", "size", "crf", "piece", "step", "seeds", "late", "clips", "cases", "inputs")
MACHINE_BOUND = ("seconds_per_second", "frames_per_second", "first_frame", "peak_memory")
"""Figures that say how fast a machine is; they are shown and not judged."""


def read_results(path: Path) -> dict[str, Any]:
    """A results.json.

    Raises:
        BadInput: missing, or not made by the benchmark.
    """
    if not path.is_file():
        raise BadInput(f"No results at {path}: give the results.json that flowportrait bench wrote.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is not JSON ({error.msg}): give the results.json of flowportrait bench.") from error
    if not isinstance(found, dict) or not {"protocol", "metrics", "machine"} <= set(found):
        raise BadInput(f"{path} was not written by flowportrait bench: give its results.json.")
    return found


def compare_results(first: Path, second: Path) -> dict[str, Any]:
    """Every figure of both: equal, within each other's 95 % intervals, or different.

    Raises:
        BadInput: a file cannot be used, or the two were not measured by the same protocol on the same inputs.
    """
    one, other = read_results(first), read_results(second)
    apart = [key for key in COMPARED if one["protocol"].get(key) != other["protocol"].get(key)]
    if apart:
        what = ", ".join(f"{k} {one['protocol'].get(k)} and {other['protocol'].get(k)}" for k in apart)
        raise BadInput(f"{first} and {second} cannot be compared, their protocols differ: {what}.")
    networks = [k for k, v in one.get("networks", {}).items() if other.get("networks", {}).get(k) != v]
    rows = []
    for system, figures in one["metrics"].items():
        for key, mine in figures.items():
            theirs = other["metrics"].get(system, {}).get(key)
            if theirs is None:
                continue
            rows.append({"system": system, "metric": key, "first": mine["mean"], "second": theirs["mean"],
                         "verdict": _verdict(key, mine, theirs)})  # fmt: skip
    verdicts = [row["verdict"] for row in rows]
    checks = {(c["winner"], c["loser"], c["metric"]): c["holds"] for c in other.get("checks", [])}
    return {
        "figures": len(rows),
        "equal": verdicts.count("equal"),
        "within intervals": verdicts.count("within intervals"),
        "different": verdicts.count("different"),
        "measured by other networks": networks,
        "checks that differ": [
            f"{c['winner']} > {c['loser']} by {c['metric']}"
            for c in one.get("checks", [])
            if checks.get((c["winner"], c["loser"], c["metric"]), c["holds"]) != c["holds"]
        ],
        "machines": [one["machine"], other["machine"]],
        "rows": rows,
    }


def _verdict(key: str, mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    if key in MACHINE_BOUND:
        return "speed"
    gap = abs(mine["mean"] - theirs["mean"])
    if gap <= 0.5 * 10 ** -(BY_KEY[key].digits if key in BY_KEY else 3):
        return "equal"
    reach = max(((e["high"] - e["low"]) / 2 if e["low"] is not None else 0.0) for e in (mine, theirs))
    return "within intervals" if gap <= reach else "different"
