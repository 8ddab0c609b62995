"""Commands of the documentation, wherever a page writes them: in a fence, indented, or in a sentence."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```[a-z]*\n(.*?)^```", re.S | re.M)
INDENTED = re.compile(r"^    +((?:.*\\\n)*.*)$", re.M)
IN_A_SENTENCE = re.compile(r"`((?:flowportrait|python) [^`]*)`")
FORM = "…"
"""Lines with an ellipsis are forms, not commands."""


def fenced(page: Path) -> list[str]:
    """Lines of code on a page, continued lines joined, comments off."""
    blocks = FENCE.findall(page.read_text())
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [re.split(r"\s+#", line)[0] for line in lines]


def elsewhere(page: Path) -> list[str]:
    """Indented commands, and those in sentences that are given something: without, a name is only mentioned."""
    prose = FENCE.sub("", page.read_text())
    found = [line.replace("\\\n", " ") for line in INDENTED.findall(prose)]
    return found + [line for line in IN_A_SENTENCE.findall(prose) if re.search(r" --\w| [A-Z]{2}|\.py \w", line)]


def commands(program: str) -> list[tuple[str, str]]:
    """Commands that begin with ``program``, each once, with the first page it is on: blanks single, one of a chain at a
    time, what may be left out (in brackets) given."""
    found: dict[str, str] = {}
    for page in PAGES:
        for line in [*fenced(page), *elsewhere(page)]:
            for part in re.split(r"\s+#", line)[0].split(" && "):
                plain = " ".join(re.sub(r"\[(--[^\]]*)\]", r"\1", part).split())
                if plain.startswith(program) and FORM not in plain:
                    found.setdefault(plain, page.name)
    return [(page, line) for line, page in found.items()]


def words(line: str) -> list[str]:
    """What a shell would hand over, after the program's name and without what is piped."""
    return shlex.split(re.split(r"\s(?:[|<>&]|2>)(?=\s|$)", line)[0])[1:]
