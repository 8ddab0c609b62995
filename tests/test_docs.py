"""Claims about the documentation: every command in it is one that the program takes, and the quick ones run."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flowportrait.cli import main, parser

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
QUICK = (
    "flowportrait recipes", "flowportrait recipes show longcat-grpo", "flowportrait policies",
    "flowportrait portraitbench --list",
)  # fmt: skip
"""Commands of the pages that need no input and a moment."""


def fenced(page: Path) -> list[str]:
    """Lines of code on a page, continued lines joined, comments off."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(), re.S | re.M)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [re.split(r"\s+#", line)[0] for line in lines]


def commands(program: str) -> list[tuple[str, str]]:
    """Commands on all pages that begin with ``program``: the page and the line. Lines with an ellipsis or an option in
    brackets are forms, not commands."""
    form = re.compile(r"…| \[--")
    return [
        (page.name, line)
        for page in PAGES
        for line in fenced(page)
        if line.startswith(program) and not form.search(line)
    ]


@pytest.mark.parametrize(("page", "line"), commands("flowportrait "))
def test_the_program_takes_what_the_pages_say(page: str, line: str) -> None:
    words = shlex.split(re.split(r"\s(?:[|<>&]|2>|&&)(?=\s|$)", line)[0])
    assert callable(parser().parse_args(words[1:]).run)


def test_the_pages_have_commands() -> None:
    assert len(commands("flowportrait ")) > 30
    assert {line for _, line in commands("flowportrait ")} >= set(QUICK)


@pytest.mark.parametrize("line", QUICK)
def test_the_quick_ones_run(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(line)[1:]) == 0
    assert len(capsys.readouterr().out) > 100


def test_scripts_modules_targets_and_extras_exist() -> None:
    everything = "\n".join(page.read_text() for page in PAGES)
    scripts = set(re.findall(r"python (benchmarks/\w+\.py)", everything))
    assert [name for name in scripts if not (ROOT / name).is_file()] == []
    modules = set(re.findall(r"python -m (flowportrait[\w.]*)", everything))
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert {line.split()[1] for page in PAGES for line in fenced(page) if line.startswith("make ")} <= targets
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    asked = re.findall(r"pip install '[\w.]*\[([\w,]+)\]'", everything)
    assert asked
    assert {extra for group in asked for extra in group.split(",")} <= extras


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    method = (tmp_path / "site" / "methods" / "nft.html").read_text()
    assert "What is verified" in method
    assert "2509.16117" in method
