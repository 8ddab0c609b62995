"""What the reports refer to exists: a test, a file or a measurement that is renamed takes its mention along."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from benchmarks.__main__ import MEASUREMENTS

from tests import ROOT

REPORTS = sorted((ROOT / "reports").glob("*.md"))


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.stem)
def test_every_test_and_file_that_a_report_names_exists(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    missing = []
    for file, name in re.findall(r"(?:`|tests/\w+/)(test_\w+\.py)(?:::(\w+))?", text):
        path = next((ROOT / "tests").rglob(file), None)
        if path is None or (name and not re.search(rf"^(async )?def {name}\(", path.read_text("utf-8"), re.M)):
            missing.append(f"{file}::{name}")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^):]+)\)", text)]
    missing += [link for link in links if link and not (report.parent / link).exists()]
    missing += [f for f in re.findall(r"python (benchmarks/\w+\.py)", text) if not (ROOT / f).is_file()]
    missing += [name for name in re.findall(r"python -m (tools\.\w+)", text) if importlib.util.find_spec(name) is None]
    assert not missing


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.stem)
def test_every_measurement_that_a_report_names_is_one_that_can_be_run(report: Path) -> None:
    known = {name for names in MEASUREMENTS.values() for name in names}
    named = set(re.findall(r"python -m benchmarks ([\w-]+)", report.read_text(encoding="utf-8")))
    assert named - {"NAME"} <= known
