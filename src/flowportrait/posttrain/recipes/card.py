"""A recipe with what one should know of it: its source, its equation, what is the paper's and what is our reading."""

from __future__ import annotations

from dataclasses import dataclass

from flowportrait.posttrain.recipe import Recipe


@dataclass(frozen=True)
class Card:
    """recipe: with its defaults; source: where it is from; equation: what is optimised, in one or a few lines;
    paper: what the source says and we follow; reading: what is ours, and why."""

    recipe: Recipe
    source: str
    equation: str
    paper: str
    reading: str

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return self.recipe.name
