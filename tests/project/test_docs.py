"""Claims about the documentation: every command in it is one that the program takes, and the quick ones run."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import tyro

from flowportrait.cli import main, read_command
from tests.doc_commands import PAGES, ROOT, commands, fenced, words

QUICK = (
    "flowportrait posttrain recipes", "flowportrait posttrain recipes show longcat-grpo",
    "flowportrait posttrain policies",
    "flowportrait evaluate portraits --list",
)  # fmt: skip
"""Commands of the pages that need no input and a moment."""


@pytest.mark.parametrize(("page", "line"), commands("flowportrait "))
def test_the_program_takes_what_the_pages_say(page: str, line: str) -> None:
    if "--help" in line:
        with pytest.raises(SystemExit, match="0"):
            read_command(words(line))
    else:
        assert callable(read_command(words(line))[0])


class Parsed(Exception):
    """A script's own parser took the words."""


@pytest.mark.parametrize(("page", "line"), commands("python "))
def test_scripts_and_modules_take_what_the_pages_say(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *given = words(line)
    name = given.pop(0) if first == "-m" else Path(first).stem
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).read_text()
    if "parse_args" not in source and "tyro" not in source:
        assert len(given) in places(source)
        return
    parse_args, cli = argparse.ArgumentParser.parse_args, tyro.cli

    def parsed(own: argparse.ArgumentParser) -> None:
        raise Parsed(parse_args(own))

    def parsed_by_type(shape: Callable[..., object], **more: str) -> None:
        quiet = shape if isinstance(shape, type) else functools.wraps(shape)(lambda *_, **__: None)
        raise Parsed(cli(quiet, **more))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(tyro, "cli", parsed_by_type)
    monkeypatch.setattr(sys, "argv", [name, *given])
    with pytest.raises(Parsed):
        runpy.run_module(name, run_name="__main__", alter_sys=True)


def places(source: str) -> set[int]:
    """How many words a script without a parser reads: as many as it names, or as it asks ``len(sys.argv)`` for."""
    single = [int(index) for index in re.findall(r"sys\.argv\[(\d+)\]", source)]
    most = max([*single, *(int(end) - 1 for end in re.findall(r"sys\.argv\[\d:(\d)\]", source))], default=0)
    asked = {int(count) - 1 for count in re.findall(r"len\(sys\.argv\) == (\d)", source)}
    return {most} if not asked else {*asked, most} if most not in asked else {*asked, most - 1}


def test_the_pages_have_commands() -> None:
    assert len(commands("flowportrait ")) > 100
    assert len(commands("python ")) > 80
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
