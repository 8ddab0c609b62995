"""This module defines the card of a recipe, which documents its source, its equation and its settings.

flowportrait posttrain recipes              source, verified, reading of every card
flowportrait posttrain recipes show NAME    one card, with the reasons for the settings that it changes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flowportrait.config import to_dict
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.manifest import flatten_settings


@dataclass(frozen=True)
class Card:
    """A recipe with its documentation.

    Attributes:
        recipe: the recipe with its default settings.
        source: where the method is published.
        equation: what is optimised, in one or a few lines.
        paper: what the source says and the recipe follows.
        verified: what of it was verified, and where.
        reading: where the recipe differs from the source or interprets it, and why.
        why: setting, or the part that it belongs to → the reason for its value.
    """

    recipe: PostTrainConfig
    source: str
    equation: str
    paper: str
    verified: str
    reading: str
    why: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the name of the recipe on the command line."""
        return self.recipe.name

    @property
    def settings(self) -> dict[str, Any]:
        """Return every setting by its full name."""
        return flatten_settings(to_dict(self.recipe))

    @property
    def chosen(self) -> dict[str, Any]:
        """Return the settings that differ from the defaults of a recipe with the same types of plan and objective."""
        recipe = self.recipe
        defaults = to_dict(PostTrainConfig(recipe.name)) | {
            "plan": to_dict(type(recipe.plan)()), "objective": to_dict(type(recipe.objective)())
        }  # fmt: skip
        default_settings = flatten_settings(defaults)
        return {name: value for name, value in self.settings.items() if default_settings.get(name, _MISSING) != value}


_MISSING = object()
