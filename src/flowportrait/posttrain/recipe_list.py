"""The recipes' names and texts as they stand in their files, without importing what the recipes are made of.

A list of names takes some milliseconds that way; importing the recipes imports torch, which takes seconds.
"""

from __future__ import annotations

import ast
from pathlib import Path

TEXTS = ("source", "verified", "reading")
_FOLDER = Path(__file__).parent / "recipes"


def recipe_texts() -> dict[str, dict[str, str]]:
    """Name of every recipe to its ``source``, ``verified`` and ``reading``, in the order of ``recipes.CARDS``."""
    try:
        return dict(_read_card(_FOLDER / f"{module}.py") for module in _modules())
    except (OSError, ValueError, LookupError):
        # No source files (a frozen program), or texts that are computed.
        from flowportrait.posttrain.recipes import CARDS

        return {name: {text: getattr(card, text) for text in TEXTS} for name, card in CARDS.items()}


def _modules() -> list[str]:
    """Modules whose cards are in ``CARDS``: ``{… for module in (flow_grpo, dance_grpo, …)}``."""
    tree = ast.parse((_FOLDER / "__init__.py").read_text("utf-8"))
    loops = [node.generators[0].iter for node in ast.walk(tree) if isinstance(node, ast.DictComp)]
    (listed,) = [loop for loop in loops if isinstance(loop, ast.Tuple)]
    return [item.id for item in listed.elts if isinstance(item, ast.Name)]


def _read_card(path: Path) -> tuple[str, dict[str, str]]:
    """Name and texts of the file's ``CARD = Card(recipe=Recipe("name", …), source="…", …)``."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CARD" and isinstance(node.value, ast.Call):
            given = {keyword.arg: keyword.value for keyword in node.value.keywords}
            recipe = given["recipe"]
            if isinstance(recipe, ast.Call) and recipe.args:
                return ast.literal_eval(recipe.args[0]), {text: ast.literal_eval(given[text]) for text in TEXTS}
    raise LookupError(f"{path} has no CARD with a name")
