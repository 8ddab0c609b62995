"""Verdicts of a judge on files, as a report that says who judged and how."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from flowportrait.errors import BadInput
from flowportrait.judge.exhibit import Exhibit
from flowportrait.judge.judges import ledger_of
from flowportrait.judge.rubric import ASPECTS, Aspect, rubric_version
from flowportrait.judge.verdict import Judge
from flowportrait.terminal import progress
from flowportrait.written import write_json

LOT = 8
"""Files in memory at a time."""


def grade_files(judge: Judge, paths: Sequence[Path], generators: Sequence[str] = ()) -> dict[str, Any]:
    """A report on every file; with a server, answers are kept as they come and the ledger's totals are told.

    Raises:
        BadInput: a file cannot be read.
    """
    makers = list(generators) or [path.parent.name for path in paths]
    ledger = ledger_of(judge)
    before = ledger.totals() if ledger else None
    verdicts = []
    for first in progress(range(0, len(paths), LOT), -(-len(paths) // LOT), "judging"):
        lot = zip(paths[first : first + LOT], makers[first : first + LOT], strict=True)
        verdicts += judge.judge([Exhibit.from_video(path, maker) for path, maker in lot])
    summary: dict[str, Any] = {"judge": f"{judge.name} ({judge.kind})", "files": len(paths)}
    for aspect in ASPECTS:
        scores = [score for verdict in verdicts if (score := verdict.findings[aspect].score) is not None]
        summary[aspect] = round(fmean(scores), 3) if scores else None
        summary[f"{aspect}_without_score"] = len(verdicts) - len(scores)
    report: dict[str, Any] = {
        "judge": judge.name, "kind": judge.kind, "fingerprint": judge.fingerprint, "rubric": rubric_version(),
        "summary": summary, "verdicts": [verdict.to_dict() for verdict in verdicts],
    }  # fmt: skip
    if ledger is not None and before is not None:
        after = ledger.totals()
        report["cost"] = {
            name: after[name] - before[name] for name in ("requests", "tokens_in", "tokens_out", "untold")
        }
        report["cost"]["dollars"] = round(after["dollars"] - before["dollars"], 6)
        summary["requests"], summary["dollars"] = report["cost"]["requests"], report["cost"]["dollars"]
    return report


def write_report(report: dict[str, Any], path: Path) -> None:
    """Whole or not at all."""
    write_json(path, report)


def read_report(path: Path) -> dict[str, Any]:
    """What ``write_report`` wrote.

    Raises:
        BadInput: it is something else.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        raw_scores(report)
        str(report["judge"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is no report of judge score ({type(error).__name__}): make one first.") from error
    return report


def raw_scores(report: dict[str, Any]) -> dict[str, dict[Aspect, float | None]]:
    """Scores before calibration, by file and aspect."""
    return {
        verdict["file"]: {aspect: verdict["aspects"][aspect]["raw"] for aspect in ASPECTS}
        for verdict in report["verdicts"]
    }
