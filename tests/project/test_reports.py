"""What the reports refer to exists: a test that is renamed takes its mention along."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import ROOT

REPORTS = sorted((ROOT / "reports").glob("*.md"))


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.stem)
def test_every_test_and_file_that_a_report_names_exists(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    missing = []
    for file, name in re.findall(r"`(test_\w+\.py)(?:::(\w+))?", text):
        path = next((ROOT / "tests").rglob(file), None)
        if path is None or (name and not re.search(rf"^(async )?def {name}\(", path.read_text("utf-8"), re.M)):
            missing.append(f"{file}::{name}")
    missing += [link for link in re.findall(r"\]\(([^):]+)\)", text) if not (report.parent / link).exists()]
    missing += [f for f in re.findall(r"python (benchmarks/\w+\.py)", text) if not (ROOT / f).is_file()]
    assert not missing
