"""The package is as docs/architecture.md says: chapters of bounded length, no circles, one name for one thing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from functools import lru_cache

import pytest

from tests import ROOT

SOURCE = ROOT / "src" / "flowportrait"
LONGEST = 500
SAME_INTERFACE = {"main", "run"}
"""Functions that every script or command has under this name."""


@lru_cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package, parsed, by its name without ``flowportrait.``."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(name: str, tree: ast.Module, typing: bool) -> set[str]:
    """Modules of the package that a module imports anywhere, inside functions too; with ``typing`` also for type
    checkers."""
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typing
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and id(node) not in skipped
            and (node.module or "").startswith("flowportrait")
        ):
            base = (node.module or "").removeprefix("flowportrait").lstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                found.add(full if full in modules() else base)
    # The package itself imports lazily what it offers; everybody may ask it for the version.
    return found - {name, ""}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected groups of more than one node (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def connect(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                connect(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            connect(node)
    return found


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_no_modules_import_each_other_not_even_inside_functions() -> None:
    sys.setrecursionlimit(10_000)
    graph = {name: imported(name, tree, typing=False) for name, tree in modules().items() if name}
    assert circles(graph) == []


def test_no_file_is_longer_than_a_chapter() -> None:
    lengths = {
        str(path.relative_to(SOURCE)): len(path.read_text("utf-8").splitlines()) for path in SOURCE.rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_a_public_class_name_is_used_once() -> None:
    places = defaultdict(list)
    for name, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_a_public_function_name_is_used_once() -> None:
    places = defaultdict(list)
    for name, tree in modules().items():
        if not name.startswith("commands."):  # these are named after the words of the command line
            functions = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
            for function in {node.name for node in functions if not node.name.startswith("_")}:
                places[function].append(name)
    assert {name: where for name, where in places.items() if len(where) > 1 and name not in SAME_INTERFACE} == {}


def test_every_module_class_and_public_function_says_what_it_is() -> None:
    silent = []
    for name, tree in modules().items():
        if not ast.get_docstring(tree) and tree.body:
            silent.append(name)
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith(
                "_"
            ):
                overloaded = any("overload" in ast.unparse(decorator) for decorator in node.decorator_list)
                docstring = "An overload." if overloaded else ast.get_docstring(node) or ""
                if not re.search(r"[.:!?)`]$", docstring.split("\n\n")[0]) or not docstring[:1].strip():
                    silent.append(f"{name}:{node.name}")
    assert silent == []


def documented(docstring: str) -> list[str]:
    """The names of a docstring's Args and Attributes; an entry that is none as it stands."""
    found = re.findall(r"^(?:Args|Attributes):\n((?: {4}.*\n?|\n)*)", docstring, re.MULTILINE)
    entries = [line.strip() for part in found for line in part.splitlines() if re.match(r" {4}\S", line)]
    return [match[1] if (match := re.match(r"(\**\w+)(?: \(.*\))?:", entry)) else entry for entry in entries]


def test_every_documented_argument_exists() -> None:
    wrong = []
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                own = node.args
                known = {one.arg for one in (*own.posonlyargs, *own.args, *own.kwonlyargs)}
                known |= {"*" + own.vararg.arg} if own.vararg else set()
                known |= {"**" + own.kwarg.arg} if own.kwarg else set()
            elif isinstance(node, ast.ClassDef) and not node.bases:
                known = {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)}
                known |= {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
                known |= {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)}
            else:
                continue
            named = documented(ast.get_docstring(node) or "")
            wrong += [f"{name}:{node.name}: {entry}" for entry in named if entry not in known]
    assert wrong == []


@pytest.mark.parametrize("heavy", ["torch", "numpy", "cv2", "mediapipe"])
def test_the_package_and_its_help_import_nothing_heavy(heavy: str) -> None:
    code = f"import sys, flowportrait, flowportrait.cli; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
