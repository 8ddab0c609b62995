"""Generators that PortraitBench can call: a portrait flow, or a function of the user's own.

--policy FOLDER                      a flow of ``portrait_flow``: of a prompt it knows pose, tone, light, expression
--policy package.module:function     function(text, seed) -> [H, W, 3] uint8 RGB
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.plugins import is_reference, load_reference
from flowportrait.portraitgen.bench import Draw
from flowportrait.portraitgen.look import ATTRIBUTES
from flowportrait.portraitgen.portrait_flow import PortraitFlow, as_frames
from flowportrait.portraitgen.taxonomy import BenchPrompt

STEPS = 20
_ASKED: dict[tuple[str, str], dict[str, float]] = {
    ("pose", "three-quarter"): {"yaw": 2.0},
    ("pose", "profile"): {"yaw": 2.5},
    ("skin_tone", "very light"): {"tone": 1.5},
    ("skin_tone", "light"): {"tone": 0.8},
    ("skin_tone", "brown"): {"tone": -0.8},
    ("skin_tone", "dark"): {"tone": -1.5},
    ("light", "hard sun"): {"light": 1.5},
    ("light", "golden hour"): {"light": 0.5},
    ("light", "neon"): {"light": -1.0},
    ("light", "dim indoor"): {"light": -1.5},
    ("expression", "closed smile"): {"smile": 2.0, "opening": -1.0},
    ("expression", "open smile"): {"smile": 2.0, "opening": 1.0},
    ("expression", "surprised"): {"opening": 2.0},
    ("expression", "neutral"): {"opening": -1.0},
    ("expression", "serious"): {"opening": -1.0, "smile": -0.5},
}
"""Terms as deviations from what the flow's training portraits had."""


def drawing(policy: str) -> Draw:
    """What draws the pictures.

    Raises:
        BadInput: no such folder, module or function.
    """
    if Path(policy).is_dir():
        return _by_flow(PortraitFlow.from_pretrained(Path(policy)))
    if not is_reference(policy):
        raise BadInput(f"--policy {policy} is neither a folder nor PACKAGE.MODULE:FUNCTION: give one of them.")
    return _by_function(policy, load_reference(policy))


def _by_function(policy: str, draw: Callable[[str, int], np.ndarray]) -> Draw:
    def checked(prompt: BenchPrompt, seed: int) -> np.ndarray:
        picture = np.asarray(draw(prompt.text, seed))
        if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
            raise BadInput(f"--policy {policy} gave {picture.dtype} {picture.shape}: return RGB uint8 [H, W, 3].")
        return picture

    return checked


def _by_flow(flow: PortraitFlow) -> Draw:
    def draw(prompt: BenchPrompt, seed: int) -> np.ndarray:
        asked = torch.zeros(1, len(ATTRIBUTES))
        for term in prompt.terms.items():
            for name, deviation in _ASKED.get(term, {}).items():
                asked[0, ATTRIBUTES.index(name)] = deviation
        wanted = flow.usual[0] + asked * flow.usual[1]
        number = int.from_bytes(prompt.id.encode()[-6:], "big")
        return as_frames(flow.draw(wanted, seed=number * 1000 + seed, steps=STEPS))[0]

    return draw
