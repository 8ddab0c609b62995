"""``flowportrait recipes``: the post-training methods, and ``recipes show NAME``: one of them in full."""

from __future__ import annotations

import argparse
import json
from typing import Any

from flowportrait.commands import Commands


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("recipes", help="list the post-training methods, or show one")
    add.add_argument("action", nargs="?", choices=("list", "show"), default="list")
    add.add_argument("name", nargs="?", help="of the recipe to show")
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All recipes with their sources, or one with its equation and every default.

    Raises:
        BadInput: no such recipe, or ``show`` without a name.
    """
    from flowportrait.config import to_dict
    from flowportrait.errors import BadInput
    from flowportrait.posttrain.recipes import CARDS, named

    if options.action == "list":
        return {name: card.source for name, card in CARDS.items()}
    if options.name is None:
        raise BadInput(f"flowportrait recipes show needs a name: {', '.join(CARDS)}.")
    recipe = named(options.name)
    card = CARDS[recipe.name]
    settings = to_dict(recipe)
    return {
        "name": card.name,
        "source": card.source,
        "equation": card.equation if options.json else "\n    " + card.equation.strip().replace("\n", "\n    "),
        "from the paper": card.paper,
        "our reading": card.reading,
        "settings": settings if options.json else "\n" + json.dumps(settings, indent=2),
    }
