"""No test of version 0.1 has vanished: each of ``tests/golden/test_ids.txt`` is still there, or ``moved_tests.tsv``
says where it went or why it was given up.

    old id <TAB> new id                 old and new: a file, file::test, or a whole id with its parameters
    old id <TAB> - <TAB> reason

A test with other parameters counts as there as long as it has as many cases. The longest matching old id counts; new
ids are looked up again, so that a test can move twice.

    python -m tests.compatibility.test_test_ids        writes the ids of today
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests import ROOT, TESTS

GOLDEN = TESTS / "golden"
IDS, MOVED = GOLDEN / "test_ids.txt", GOLDEN / "moved_tests.tsv"
GONE = "-"


def collected() -> list[str]:
    """Ids of all tests, in the order of their files."""
    root = ROOT
    words = [sys.executable, "-m", "pytest", "--collect-only", "-m", "", "-o", "addopts=-q", "tests"]
    result = subprocess.run(words, cwd=root, env=os.environ, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:]
    return [line for line in result.stdout.splitlines() if "::" in line]


def read_moves(text: str) -> dict[str, str]:
    """Old id → new id, or ``-``; a test that is given up has a reason."""
    moves: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        parts = line.split("\t")
        assert len(parts) >= 2, f"moved_tests.tsv, line {number}: old id and new id with a tab between them"
        assert parts[1] != GONE or (len(parts) == 3 and parts[2].strip()), f"moved_tests.tsv, line {number}: say why"
        moves[parts[0]] = parts[1]
    return moves


def moved(test: str, moves: dict[str, str]) -> str:
    """Where a test is now by the table: its id where it is not in the table, ``-`` where it is given up."""
    for _ in range(len(moves) + 1):
        name, _, _ = test.partition("[")
        file, _, function = name.partition("::")
        if test in moves:
            following = moves[test]
        elif name in moves:
            following = moves[name] if moves[name] == GONE else moves[name] + test[len(name) :]
        elif file in moves:
            following = moves[file] if moves[file] == GONE else f"{moves[file]}::{function}" + test[len(name) :]
        else:
            return test
        if following in (GONE, test):
            return following
        test = following
    raise AssertionError(f"{test} goes round in a circle in moved_tests.tsv")


def vanished(before: list[str], now: list[str], moves: dict[str, str]) -> list[str]:
    """Tests of before that are neither there nor explained; a test with other parameters needs as many cases."""
    there = set(now)
    cases = Counter(test.partition("[")[0] for test in now)
    wanted: Counter[str] = Counter()
    places = [(test, moved(test, moves)) for test in before]
    for _, place in places:
        wanted[place.partition("[")[0]] += 1
    missing = []
    for test, place in places:
        name = place.partition("[")[0]
        if place != GONE and place not in there and cases[name] < wanted[name]:
            missing.append(test)
    return missing


def test_a_test_that_vanished_is_found() -> None:
    before = ["a.py::x", "a.py::y[1]", "a.py::y[2]", "b.py::z"]
    assert vanished(before, before, {}) == []
    assert vanished(before, before[1:], {}) == ["a.py::x"]
    assert vanished(before, ["a.py::x", "a.py::y[3]", "a.py::y[4]", "b.py::z"], {}) == []
    assert vanished(before, ["a.py::x", "a.py::y[1]", "b.py::z"], {}) == ["a.py::y[2]"]
    assert vanished(before, ["c.py::x", "c.py::y[1]", "c.py::y[2]"], read_moves("a.py\tc.py\nb.py::z\t-\tmerged")) == []
    assert vanished(["a.py::x[b]"], ["c.py::w[b]"], {"a.py::x": "b.py::w", "b.py": "c.py"}) == []
    assert vanished(["a.py::x[b]"], ["c.py::w"], {"a.py::x[b]": "c.py::w"}) == []
    with pytest.raises(AssertionError, match="say why"):
        read_moves("a.py::x\t-")
    with pytest.raises(AssertionError, match="circle"):
        moved("a.py::x", {"a.py": "b.py", "b.py": "a.py"})


@pytest.mark.slow
def test_no_test_of_version_0_1_has_vanished() -> None:
    moves = read_moves(MOVED.read_text(encoding="utf-8")) if MOVED.is_file() else {}
    missing = vanished(IDS.read_text(encoding="utf-8").splitlines(), collected(), moves)
    assert not missing, f"{len(missing)} tests are gone, {missing[:5]} among them: add them to {MOVED.name}"


if __name__ == "__main__":
    IDS.write_text("\n".join(collected()) + "\n", encoding="utf-8")
