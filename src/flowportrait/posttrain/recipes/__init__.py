"""Every post-training method as a recipe, one file each, by the name the command line takes."""

from __future__ import annotations

import json
from pathlib import Path

from flowportrait.config import merge
from flowportrait.errors import BadInput
from flowportrait.posttrain.recipe import FIRST_VERSION, Recipe
from flowportrait.posttrain.recipes import (
    awm,
    branch_grpo,
    cps,
    dance_grpo,
    distil,
    dppo,
    exemplar_awm,
    exemplar_dpo,
    exemplar_ratio,
    flash_grpo,
    flow_dpo,
    flow_grpo,
    flow_rwr,
    gspo,
    guard,
    kvpo,
    longcat_grpo,
    mix_grpo,
    nft,
    nft_regions,
    otca,
    pref_grpo,
    solace,
    sync_dpo,
    tempflow,
    threshold,
    vipo,
)
from flowportrait.posttrain.recipes.card import Card

CARDS: dict[str, Card] = {
    module.CARD.name: module.CARD
    for module in (
        flow_grpo, dance_grpo, mix_grpo, flash_grpo, longcat_grpo, cps, guard, dppo, gspo, branch_grpo, tempflow,
        nft, nft_regions, awm, flow_rwr, flow_dpo, kvpo, otca, vipo, pref_grpo, solace, exemplar_ratio, exemplar_awm,
        exemplar_dpo, sync_dpo, threshold, distil,
    )
}  # fmt: skip


def named(name: str) -> Recipe:
    """A recipe with its defaults.

    Raises:
        BadInput: there is none of that name.
    """
    if name not in CARDS:
        raise BadInput(f"No recipe named {name!r}: choose one of {', '.join(CARDS)}.")
    return CARDS[name].recipe


def read_recipe(path: Path) -> Recipe:
    """The resolved recipe of a run from its ``recipe.json``.

    Raises:
        BadInput: not such a file, or settings that the recipe does not have.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as a recipe: {error}.") from error
    if not isinstance(data, dict) or "name" not in data:
        raise BadInput(f"{path} is not a recipe: it has no name.")
    return merge(named(data["name"]), {"version": FIRST_VERSION, **data})
