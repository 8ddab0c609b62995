"""How expressive the motion is: one direction among a generator's tokens.

    token ← token + ln(intensity) · d          1: nothing is added, to the bit       1.5: brows move 1.5 times as far

The direction d is all that was learned, from windows in which speakers move brows, smile and jaw more or less than they
usually do (``train_intensity``). It was learned on ``sft`` and serves what is trained from it: what a sentence's lips
do when stays the generator's own.
"""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import torch

from flowportrait.devices import read_weights
from flowportrait.errors import BadInput
from flowportrait.generator.arflow import Condition

LEAST, MOST = 0.6, 1.6


@lru_cache(maxsize=1)
def direction() -> torch.Tensor:
    """d ``[hidden]``."""
    return read_weights(Path(str(files("flowportrait") / "weights" / "intensity" / "model.safetensors")))["direction"]


def intensify(condition: Condition, intensity: float) -> Condition:
    """The condition of motion that is so many times as expressive as usual.

    Raises:
        BadInput: outside 0.6 to 1.6, or a generator of another width than the direction was learned for.
    """
    if intensity == 1.0:
        return condition
    if not LEAST <= intensity <= MOST:
        raise BadInput(f"intensity={intensity} is not possible: give a number from {LEAST:g} to {MOST:g}.")
    if condition.style.shape[1:] != direction().shape:
        raise BadInput("intensity was learned for the shipped generators: leave it at 1 for this checkpoint.")
    return condition._replace(style=condition.style + math.log(intensity) * direction().to(condition.style))
