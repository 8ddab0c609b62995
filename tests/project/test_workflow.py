"""The workflow file and ``.ci/run`` ask for what exists: targets, extras, files, and commands of the program."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
from itertools import pairwise
from typing import Any

import pytest
import yaml

from flowportrait.cli import read_command
from tests import ROOT
from tests.required import GROUPS

WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ALL = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in FILES]
LINES = [step["run"] for one in ALL for job in one["jobs"].values() for step in job["steps"] if "run" in step]


def targets(text: str) -> set[str]:
    return set(re.findall(r"^\s*make ([\w-]+)$", text, re.M))


def test_every_target_exists() -> None:
    exist = set(re.findall(r"^([\w-]+):", MAKEFILE, re.M))
    assert targets(CI) == {"lint", "test", "test-slow", "docs"}
    assert targets("\n".join([CI, *LINES])) <= exist


def test_every_system_and_python_runs_the_quick_tests_or_the_wheel() -> None:
    quick, wheel = (WORKFLOW["jobs"][name]["strategy"]["matrix"] for name in ("quick", "wheel"))
    for matrix in (quick, wheel):
        assert [name.split("-")[0] for name in matrix["os"]] == ["ubuntu", "ubuntu", "macos", "windows"]
        assert "ubuntu-24.04-arm" in matrix["os"]
    declared = {line.split(" :: ")[-1] for line in project()["classifiers"] if " :: Python :: 3." in line}
    assert set(wheel["python"]) == declared
    assert set(quick["python"]) | {one["python"] for one in quick["include"]} == declared


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_workflow_names_what_exists(line: str) -> None:
    words = shlex.split(line)
    for extra in re.findall(r"\.\[([\w,]+)\]", line):
        assert set(extra.split(",")) <= set(project()["optional-dependencies"])
    for before, file in pairwise(words):
        if before == "-c" and file.endswith(".lock"):
            assert (ROOT / file).is_file()
    assert all((ROOT / file).exists() for file in re.findall(r"[\w./]*(?:src|docs|examples)/[\w./]+", line))
    if words == ["flowportrait", "--version"]:
        return
    if words[0] == "flowportrait":
        assert callable(read_command(words[1:])[0])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}: ", MAKEFILE, re.M)
    elif words[-1].endswith(".ci/run"):
        assert os.access(ROOT / words[-1], os.X_OK)
    else:
        assert words[0] == "python"


def test_ci_forbids_skips_and_runs_every_required_group() -> None:
    assert "export FLOWPORTRAIT_CI=1" in CI
    slow = MAKEFILE[MAKEFILE.index("\ntest-slow:") :].splitlines()[2]
    assert '-m "slow and not data and not fuzz and not ray"' in slow
    assert not {"data", "fuzz"} & set(GROUPS)
    assert subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=False).returncode == 0


def test_a_newcomer_is_told_of_the_cpu_build_of_torch() -> None:
    for page in ("README.md", "docs/tutorials/first-video.md"):
        assert "pip install torch --index-url https://download.pytorch.org/whl/cpu" in (ROOT / page).read_text("utf-8")
