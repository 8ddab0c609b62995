"""The learned look of a mouth's inside: three smooth layers with sharp lines between them.

    colour / skin  =  cavity  ◁ lower teeth, j > line + curve u²  ◁ upper teeth, s < line + curve u²

A small network gives the three layers' colours at a place (u, s, j, a, b) of an opening (height, width);
what is in front of what, and where teeth end, is geometry fixed to skull and jaw.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save_file

from flowportrait.written import complete

FEATURES = 12
HIDDEN = 40
LAYERS = 4


def features(place: Any, shape: Any) -> list[Any]:
    """The 12 inputs ``[N]`` for coordinates ``[N, 5]``, opening shape ``[N, 2]``, NumPy or torch."""
    u, s, j, a, b = (place[:, i] for i in range(5))
    h, w = shape[:, 0], shape[:, 1]
    share, spread = a / (a + b + 0.02), abs(u) / (w + 0.1)
    columns = [u, abs(u), u * u * 4, s, j, a, b, 0.3 * share, h, w, 0.3 * spread, h * a * 5]
    return [8.0 * column for column in columns]


class MouthModel:
    """Weights of the layers' network, and the two tooth lines (``[2]`` each: upper, lower)."""

    def __init__(self, layers: Sequence[tuple[np.ndarray, np.ndarray]], line: np.ndarray, curve: np.ndarray) -> None:
        self._layers = [(w.astype(np.float32), b.astype(np.float32)) for w, b in layers]
        self.line, self.curve = line.astype(np.float32), curve.astype(np.float32)

    def layers(self, place: np.ndarray, shape: tuple[float, float]) -> np.ndarray:
        """Cavity, upper and lower tooth colours relative to the skin, ``[N, 9]`` float32, at places ``[N,
        5]`` of an opening of (height, width)."""
        x = np.stack(features(place, np.broadcast_to(np.array(shape, np.float32), (len(place), 2))), -1)
        for weight, bias in self._layers[:-1]:
            x = np.maximum(x @ weight + bias, 0)
        weight, bias = self._layers[-1]
        return np.exp(x @ weight + bias)

    def save(self, path: Path) -> None:
        """Write as fp16 safetensors, under a temporary name first."""
        tensors = {"line": self.line, "curve": self.curve}
        for index, (weight, bias) in enumerate(self._layers):
            tensors |= {f"weight_{index}": weight, f"bias_{index}": bias}
        path.parent.mkdir(parents=True, exist_ok=True)
        with complete(path) as partial:
            save_file({name: np.ascontiguousarray(value, np.float16) for name, value in tensors.items()}, str(partial))

    @classmethod
    @lru_cache(maxsize=1)
    def shipped(cls) -> MouthModel:
        """The model that comes with the package."""
        data = load(files("flowportrait").joinpath("weights/mouth/interior.safetensors").read_bytes())
        layers = [(data[f"weight_{i}"], data[f"bias_{i}"]) for i in range(LAYERS)]
        return cls(layers, data["line"], data["curve"])
