"""Where ``FLOWPORTRAIT_CI`` is set, a skipped test of a required group fails; any other skip is a skip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import ROOT
from tests.required import GROUPS, groups, skips_fail

SKIPPED = {
    "test_docs_run.py": "import pytest\ndef test_one():\n    pytest.skip('no guide')\n",
    "test_policies_sharded.py": "import pytest\npytest.importorskip('no_such_module')\ndef test_one():\n    pass\n",
    "test_marked.py": "import pytest\n@pytest.mark.browser\ndef test_one():\n    pytest.skip('no Chromium')\n",
    "test_other.py": "import pytest\ndef test_one():\n    pytest.skip('no such codec')\n",
}


def test_in_ci_a_skipped_test_of_a_required_group_fails_and_others_may_be_skipped(tmp_path: Path) -> None:
    """The four files are run under this project's ``conftest.py`` and settings."""
    tests = tmp_path / "tests"
    tests.mkdir()
    for own in ("__init__.py", "conftest.py", "required.py"):
        shutil.copy(ROOT / "tests" / own, tests / own)
    for name, text in SKIPPED.items():
        (tests / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), "-rA", "-p",
         "no:cacheprovider", "--continue-on-collection-errors", str(tests)],
        cwd=tmp_path, env=os.environ | {"FLOWPORTRAIT_CI": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    failed = {
        Path(line.split()[1].split("::")[0]).name for line in done.stdout.splitlines() if line[:5] in ("FAILE", "ERROR")
    }
    assert failed >= set(SKIPPED) - {"test_other.py"}
    assert "1 skipped" in done.stdout
    assert "FLOWPORTRAIT_CI forbids" in done.stdout


@pytest.mark.parametrize(("value", "forbidden"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_elsewhere_it_is_skipped(value: str | None, forbidden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWPORTRAIT_CI", raising=False)
    if value is not None:
        monkeypatch.setenv("FLOWPORTRAIT_CI", value)
    assert skips_fail() is forbidden


def test_every_group_has_a_marker_and_files_of_its_own_name_pattern() -> None:
    assert groups("test_study_browser.py") == groups("test_browser_colour.py") == ["browser"]
    assert groups("test_scale.py") == ["distributed"]
    assert groups("test_media.py") == []
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    assert {line.split(":")[0] for line in markers} >= set(GROUPS)
