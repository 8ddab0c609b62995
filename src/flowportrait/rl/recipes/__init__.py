"""This package contains every post-training method as a recipe, and finds recipes by name.

    find_recipe("flow-grpo")          one of ``RECIPES``
    find_recipe("calm")               an entry point of the group ``flowportrait.recipes``
    find_recipe("my_module:CARD")     a ``Card``, or a function that returns one

A run stores the name in its ``recipe.json`` and is resumed by it. No heavy module is imported before a recipe is
requested, so that listing names and texts takes milliseconds.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowportrait.errors import BadInput
from flowportrait.plugins import load_plugin, plugin_names
from flowportrait.terminal import log

if TYPE_CHECKING:
    from flowportrait.rl.config import PostTrainConfig
    from flowportrait.rl.recipes.card import Card


RECIPES: dict[str, str] = {
    "flow-grpo": "grpo:FLOW_GRPO_CARD",
    "dance-grpo": "grpo:DANCE_GRPO_CARD",
    "mix-grpo": "grpo:MIX_GRPO_CARD",
    "flash-grpo": "grpo:FLASH_GRPO_CARD",
    "longcat-grpo": "grpo:LONGCAT_GRPO_CARD",
    "cps": "grpo:CPS_CARD",
    "guard": "grpo_variants:GUARD_CARD",
    "dppo": "grpo_variants:DPPO_CARD",
    "gspo": "grpo_variants:GSPO_CARD",
    "branch-grpo": "grpo:BRANCH_GRPO_CARD",
    "tempflow": "grpo:TEMPFLOW_CARD",
    "nft": "matching:NFT_CARD",
    "nft-regions": "matching:NFT_REGIONS_CARD",
    "awm": "matching:AWM_CARD",
    "flow-rwr": "matching:FLOW_RWR_CARD",
    "flow-dpo": "preference:FLOW_DPO_CARD",
    "kvpo": "grpo_variants:KVPO_CARD",
    "step-credit": "grpo_variants:STEP_CREDIT_CARD",
    "region-credit": "grpo_variants:REGION_CREDIT_CARD",
    "pref-grpo": "grpo_variants:PREF_GRPO_CARD",
    "solace": "grpo_variants:SOLACE_CARD",
    "exemplar-ratio": "exemplar:EXEMPLAR_RATIO_CARD",
    "exemplar-awm": "exemplar:EXEMPLAR_AWM_CARD",
    "exemplar-dpo": "exemplar:EXEMPLAR_DPO_CARD",
    "portraitgen": "exemplar:PORTRAITGEN_CARD",
    "sync-dpo": "preference:SYNC_DPO_CARD",
    "threshold": "preference:THRESHOLD_CARD",
    "distil": "matching:DISTIL_CARD",
    "dmd": "distribution:DMD_CARD",
    "dmd-reward": "distribution:DMD_REWARD_CARD",
    "dmd-tilted": "distribution:DMD_TILTED_CARD",
    "dmd-trust": "distribution:DMD_TRUST_CARD",
    "direct": "direct:DIRECT_CARD",
    "rollout-gradient": "direct:ROLLOUT_GRADIENT_CARD",
    "corrective-reflow": "matching:CORRECTIVE_REFLOW_CARD",
}
"""Name of every built-in recipe → its module in this folder and its card there."""

EARLIER_NAMES = {"otca": "step-credit", "vipo": "region-credit"}
"""Earlier name of a recipe → its name. A recipe has the name of a paper only if the paper's equations were read."""

TEXTS = ("source", "verified", "reading")


class _BuiltInCards(Mapping[str, "Card"]):
    """The cards of ``RECIPES`` by name. The module of a card is imported when the card is requested."""

    def __getitem__(self, name: str) -> Card:
        module, _, attribute = RECIPES[name].partition(":")
        card: Card = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
        return card

    def __iter__(self) -> Iterator[str]:
        return iter(RECIPES)

    def __len__(self) -> int:
        return len(RECIPES)


CARDS: Mapping[str, Card] = _BuiltInCards()


def find_card(name: str) -> Card:
    """Return the card of a recipe, with the requested name.

    Args:
        name: a built-in recipe, an entry point of ``flowportrait.recipes``, or ``MODULE:NAME``.

    Raises:
        BadInput: there is no recipe of that name, or it is not a card.
    """
    if name in RECIPES:
        return CARDS[name]
    if name in EARLIER_NAMES:
        current = CARDS[EARLIER_NAMES[name]]
        log(f"The recipe {name} is now called {current.name}: it is {current.source}.")
        return replace(current, recipe=replace(current.recipe, name=name))
    kind: type[Card] = importlib.import_module(f"{__name__}.card").Card
    plugin: Any = load_plugin("recipes", name, RECIPES)
    card = plugin() if callable(plugin) else plugin
    if not isinstance(card, kind):
        raise BadInput(
            f"The recipe {name!r} is of type {type(card).__name__}: make it a Card, or a function that returns one."
        )
    return replace(card, recipe=replace(card.recipe, name=name))


def find_recipe(name: str) -> PostTrainConfig:
    """Return a recipe with its default settings; see ``find_card``.

    Raises:
        BadInput: there is no recipe of that name.
    """
    return find_card(name).recipe


def recipe_texts() -> dict[str, dict[str, str]]:
    """Return name → ``source``, ``verified`` and ``reading`` of every recipe, with those of other packages last.

    The texts of built-in recipes are parsed from their files, since importing these imports torch, which takes seconds.
    """
    return {**_built_in_texts(), **{name: _texts(find_card(name)) for name in plugin_names("recipes")}}


@cache
def _built_in_texts() -> dict[str, dict[str, str]]:
    try:
        files = {module: _parse_cards(module) for module in {place.partition(":")[0] for place in RECIPES.values()}}
        places = {name: place.partition(":") for name, place in RECIPES.items()}
        return {name: files[module][attribute] for name, (module, _, attribute) in places.items()}
    except (OSError, ValueError, LookupError):  # no source files (a frozen program), or texts that are computed
        return {name: _texts(card) for name, card in CARDS.items()}


def _texts(card: Card) -> dict[str, str]:
    return {text: getattr(card, text) for text in TEXTS}


def _parse_cards(module: str) -> dict[str, dict[str, str]]:
    """Return the texts of every ``NAME = Card(source="…", …)`` in a module of this folder, by NAME."""
    cards = {}
    for node in ast.parse((Path(__file__).parent / f"{module}.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "Card":
            arguments = {keyword.arg: keyword.value for keyword in node.value.keywords}
            texts = {text: ast.literal_eval(arguments[text]) for text in TEXTS}
            cards[ast.unparse(node.targets[0])] = texts
    return cards
