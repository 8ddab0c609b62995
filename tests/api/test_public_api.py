"""Claims about the names that ``flowportrait`` exports: few, found lazily, documented, and typed."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import flowportrait as fp
from tests import ROOT
from tests.apps.test_startup import HEAVY, imported_by

NAMES = [name for name in fp.__all__ if not name.startswith("__")]


def test_there_are_about_fifteen_names_and_importing_them_costs_nothing() -> None:
    assert 12 <= len(NAMES) <= 24
    assert sorted(fp.__all__) == sorted(set(fp.__all__))
    found = imported_by("import flowportrait\ndir(flowportrait)")
    assert not found & {*HEAVY, "numpy"}
    assert {name for name in found if name.startswith("flowportrait")} == {"flowportrait"}


def test_a_name_that_reads_settings_alone_imports_nothing_heavy() -> None:
    found = imported_by("from flowportrait import AnimateRequest, BadInput\nAnimateRequest(seed=1).check()")
    assert not found & HEAVY


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_found_and_documented(name: str) -> None:
    value = getattr(fp, name)
    assert name in dir(fp)
    first = (inspect.getdoc(value) or "").splitlines()[0]
    assert len(first) > 20, name
    assert not first.startswith(("Of ", "See the module")), name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fp.nothing  # noqa: B018


@pytest.mark.slow
def test_a_type_checker_knows_the_type_of_every_name(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import flowportrait as fp\n" + "".join(f"reveal_type(fp.{name})\n" for name in NAMES))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--follow-imports=silent", str(program)], capture_output=True, text=True,
        cwd=ROOT,
    )  # fmt: skip
    revealed = [line for line in done.stdout.splitlines() if "Revealed type" in line]
    assert len(revealed) == len(NAMES), done.stdout
    assert not [line for line in revealed if 'type is "Any"' in line]
