"""Every post-training method as a recipe, by the name the command line takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from flowportrait.config import merge
from flowportrait.errors import BadInput
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.flow_grpo import flow_grpo

RECIPES: dict[str, Callable[[], Recipe]] = {"flow-grpo": flow_grpo}


def named(name: str) -> Recipe:
    """A recipe with its defaults.

    Raises:
        BadInput: there is none of that name.
    """
    if name not in RECIPES:
        raise BadInput(f"No recipe named {name!r}: choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]()


def read_recipe(path: Path) -> Recipe:
    """The resolved recipe of a run from its ``recipe.json``.

    Raises:
        BadInput: not such a file, or settings that the recipe does not have.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as a recipe: {error}.") from error
    if not isinstance(data, dict) or "name" not in data:
        raise BadInput(f"{path} is not a recipe: it has no name.")
    return merge(named(data["name"]), data)
