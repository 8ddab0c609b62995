"""``flowportrait recipes``: the post-training methods, and ``recipes show NAME``: one of them in full."""

from __future__ import annotations

import argparse
import json
from typing import Any

from flowportrait.commands import Commands


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("recipes", help="list the post-training methods, or show one")
    add.add_argument("action", nargs="?", choices=("list", "show"), default="list", help="all (default), or one whole")
    add.add_argument("name", nargs="?", help="of the recipe to show")
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All recipes with their sources, or one with its equation, every default and why.

    Raises:
        BadInput: no such recipe, or ``show`` without a name.
    """
    from flowportrait.errors import BadInput
    from flowportrait.rl.recipes import recipe_texts

    texts = recipe_texts()
    if options.action == "list":
        listed = {
            name: {"source": text["source"], "verified": text["verified"], "our reading": text["reading"]}
            for name, text in texts.items()
        }
        return listed if options.json else {name: _indented(parts) for name, parts in listed.items()}
    if options.name is None:
        raise BadInput(f"flowportrait recipes show needs a name: {', '.join(texts)}.")
    from flowportrait.config import to_dict
    from flowportrait.rl.recipes import find_card

    card = find_card(options.name)
    settings = to_dict(card.recipe)
    why = {name: _given(card.settings, name) + because for name, because in card.why.items()}
    return {
        "name": card.name,
        "source": card.source,
        "equation": card.equation if options.json else "\n    " + card.equation.strip().replace("\n", "\n    "),
        "from the paper": card.paper,
        "verified": card.verified,
        "our reading": card.reading,
        "why": dict(card.why) if options.json else _indented(why),
        "settings": settings if options.json else "\n" + json.dumps(settings, indent=2),
    }


def _indented(parts: dict[str, str]) -> str:
    return "".join(f"\n    {name}: {text}" for name, text in parts.items())


def _given(settings: dict[str, Any], name: str) -> str:
    """The value of a setting in front of its reason; of a part with settings of its own nothing."""
    return f"{settings[name]}, " if name in settings else ""
