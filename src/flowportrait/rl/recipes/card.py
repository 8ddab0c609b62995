"""What a recipe is, where it comes from, and what of it was verified.

flowportrait posttrain recipes              source, verified, reading            of every card
flowportrait posttrain recipes show NAME    the card, and why each setting that it chooses is what it is
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flowportrait.config import to_dict
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.manifest import flat


@dataclass(frozen=True)
class Card:
    """recipe: with its defaults; source: where it is from; equation: what is optimised, in one or a few lines;
    paper: what the source says and we follow; verified: where we saw that it does; reading: what is ours, and why;
    why: setting, or the part that it belongs to → the reason for its value."""

    recipe: PostTrainConfig
    source: str
    equation: str
    paper: str
    verified: str
    reading: str
    why: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return self.recipe.name

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by its full name."""
        return flat(to_dict(self.recipe))

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings that are not those of every recipe with its kind of plan and objective."""
        recipe = self.recipe
        usual = to_dict(PostTrainConfig(recipe.name)) | {
            "plan": to_dict(type(recipe.plan)()), "objective": to_dict(type(recipe.objective)())
        }  # fmt: skip
        known = flat(usual)
        return {name: value for name, value in self.settings.items() if known.get(name, _NOWHERE) != value}


_NOWHERE = object()
