"""One dimension of a latent reward taken from another: the towers share nothing, so each may come from the training
that was best for it.

    python -m flowportrait.preference.graft INTO FROM DIMENSION OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from flowportrait.errors import BadInput
from flowportrait.preference.latent_reward import LatentReward
from flowportrait.preference.made_pairs import DIMENSIONS

PER_DIMENSION = ("growth", "centre", "spread")
"""Tensors whose last axis is the dimensions."""


@torch.no_grad()
def graft(into: LatentReward, source: LatentReward, dimension: str) -> None:
    """Replace the tower of ``dimension``, its certainty and its yardstick.

    Raises:
        BadInput: no such dimension, or towers of another shape.
    """
    if dimension not in DIMENSIONS or into.config != source.config:
        names = ", ".join(DIMENSIONS)
        raise BadInput(f"Cannot take over {dimension}: choose from {names}, with two latent rewards of one shape.")
    into.get_submodule(dimension).load_state_dict(source.get_submodule(dimension).state_dict())
    column = DIMENSIONS.index(dimension)
    for name in PER_DIMENSION:
        getattr(into, name)[..., column] = getattr(source, name)[..., column]


if __name__ == "__main__":
    whole, part = (LatentReward.from_pretrained(Path(folder)) for folder in sys.argv[1:3])
    graft(whole, part, sys.argv[3])
    whole.save_pretrained(Path(sys.argv[4]))
