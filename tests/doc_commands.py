"""Blocks and commands of the documentation: in a fence, indented, or in a sentence.

    ```bash                         commands, run in order
    ```python                       code, run in order in one namespace
    ```python title="mine.py"       a file, saved under this name; also ```yaml
    <!-- not run: reason -->        before a fence: parsed, and not run

Other fences (``text``, ``toml``, …) only show something, and so do lines with an ellipsis.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
SHELL = ("bash", "sh")
FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1``` *$", re.S | re.M)
INDENTED = re.compile(r"^    +((?:.*\\\n)*.*)$", re.M)
IN_A_SENTENCE = re.compile(r"`((?:flowportrait|python) [^`]*)`")
FORM = "…"
"""Lines with an ellipsis are forms, not commands."""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    """Path below the project's folder."""
    line: int
    language: str
    title: str
    text: str
    not_run: str
    """The reason that the page gives for not running it."""


def page_name(page: Path) -> str:
    """The path of a page below the project's folder."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Fenced blocks of a page, in order."""
    text, found = page.read_text(encoding="utf-8"), []
    for fence in FENCE.finditer(text):
        indent, info, body = fence.groups()
        before = text[: fence.start()].rstrip()
        reason = re.search(r"<!-- not run: ([^>]*?) *-->$", before)
        title = re.search(r'title="([^"]+)"', info)
        found.append(
            Block(
                page_name(page), before.count("\n") + 2, info.split()[0] if info.split() else "",
                title[1] if title else "", re.sub(f"^{indent}", "", body, flags=re.M), reason[1] if reason else "",
            )
        )  # fmt: skip
    return found


def lines(text: str) -> list[str]:
    """Lines of a shell block, continued lines joined, comments off."""
    joined = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in (re.split(r"(?:^|\s+)#\s", line)[0] for line in joined) if line]


def fenced(page: Path) -> list[str]:
    """Commands and other lines of the shell blocks of a page."""
    return [line for block in blocks(page) if block.language in SHELL for line in lines(block.text)]


def elsewhere(page: Path) -> list[str]:
    """Indented commands, and those in sentences that are given something: without, a name is only mentioned."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    found = [line.replace("\\\n", " ") for line in INDENTED.findall(prose)]
    return found + [line for line in IN_A_SENTENCE.findall(prose) if re.search(r" --\w| [A-Z]{2}|\.py \w", line)]


def commands(program: str, pages: Sequence[Path] = PAGES) -> list[tuple[str, str]]:
    """Commands that begin with ``program``, each once, with the first page it is on: blanks single, one of a chain at a
    time, what may be left out (in brackets) given."""
    found: dict[str, str] = {}
    for page in pages:
        for line in [*fenced(page), *elsewhere(page)]:
            for part in re.split(r"\s+#\s", line)[0].split(" && "):
                plain = " ".join(re.sub(r"\[(--[^\]]*)\]", r"\1", part).split())
                if plain.startswith(program) and FORM not in plain:
                    found.setdefault(plain, page_name(page))
    return [(page, line) for line, page in found.items()]


def words(line: str) -> list[str]:
    """What a shell would hand over, after the program's name and without what is piped."""
    return shlex.split(re.split(r"\s(?:[|<>&]|2>)(?=\s|$)", line)[0])[1:]
