"""Pages that mkdocs makes while it builds: one per recipe, from its card, its settings and the tests that name it.

    posttrain/recipes/*.py  cards ┐
    tests/*.py  "nft"  ───────────┴─►  methods/nft.md, methods/index.md

Links out of docs/ into the source become plain names: the site stands without the repository.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from flowportrait.config import to_dict
from flowportrait.rl.recipes import CARDS

ROOT = Path(__file__).resolve().parent.parent
_OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./[^)]*\)")


def on_files(files: Any, config: Any) -> Any:
    """mkdocs: add the pages."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, f"methods/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs: what is linked but not on the site is named."""
    return _OUTSIDE.sub(r"\1", markdown)


def pages() -> dict[str, str]:
    """Text by page: ``index`` and every recipe."""
    claims = claims_by_recipe()
    rows = [f"| [{name}]({name}.md) | {card.source} | {len(claims[name])} |" for name, card in CARDS.items()]
    index = "\n".join([
        "# Methods", "", "Every method is a recipe of one trainer: planner, kernel, credit, objective, regularisers, "
        "roles. These pages are made from the recipes' cards, so they say what the code says.", "",
        "| recipe | source | claims in the tests that name it |", "|---|---|---|", *rows, "",
        "Beside these, every recipe passes what all must pass: " + "; ".join(claims_of_all()) + ".", "",
    ])  # fmt: skip
    return {"index": index} | {name: _page(name, claims[name]) for name in CARDS}


def _page(name: str, claims: list[str]) -> str:
    card = CARDS[name]
    settings = json.dumps(to_dict(card.recipe), indent=2)
    tested = [f"* {claim}" for claim in claims] or ["No claim of its own: what all recipes must pass, it passes."]
    why = [f"| `{setting}` | {card.settings.get(setting, '')} | {because} |" for setting, because in card.why.items()]
    return "\n".join([
        f"# {name}", "", card.source, "", "```", card.equation.strip(), "```", "", "## From the paper", "", card.paper,
        "", f"Seen where: {card.verified}", "", "## Our reading", "", card.reading, "", "## Why it is set so", "",
        "| setting | value | why |", "|---|---|---|", *why, "", "## What is verified", "", *tested, "",
        "And [what every recipe must pass](index.md).", "", "## Run it", "", "```bash",
        f"flowportrait posttrain --recipe {name} --prompts DIR --output RUN", "```", "", "## Settings", "", "```json",
        settings, "```", "",
    ])  # fmt: skip


def claims_by_recipe() -> dict[str, list[str]]:
    """Names of the tests in whose text a recipe's name stands, as sentences."""
    found: dict[str, list[str]] = {name: [] for name in CARDS}
    for function, words in _tests():
        for name in found:
            if name in words:
                found[name].append(_sentence(function))
    return found


def claims_of_all() -> list[str]:
    """The same of tests that go through all recipes."""
    return [_sentence(function) for function, words in _tests() if "CARDS" in words]


def _tests() -> list[tuple[str, set[str]]]:
    """Test functions with the strings and names that occur in them and their decorators."""
    result = []
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                strings = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
                names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                result.append((node.name, strings | names))
    return result


def _sentence(function: str) -> str:
    return function.removeprefix("test_").replace("_", " ")
