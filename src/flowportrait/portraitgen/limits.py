"""Where real pictures end: the limit of every detector, from footage of training speakers.

    python -m flowportrait.portraitgen.limits faces.safetensors src/flowportrait/weights/portraitgen/limits.json

limit = what 1 % of real pictures exceed; spread = their standard deviation. An artefact is a number beyond its limit,
so about one real portrait in a hundred is accused of each: rates are to be read against real pictures' own. Eyes are
closed by definition, because people who speak blink; blocks begin where an ordinary JPEG file ends.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from rich.progress import track

from flowportrait.media.face import FaceTracker
from flowportrait.portraitgen.artefacts import CATALOGUE
from flowportrait.portraitgen.detectors import blocks, ratios
from flowportrait.portraitgen.faces import Faces
from flowportrait.portraitgen.look import NEAREST, Look, Scale, glance
from flowportrait.portraitgen.quality import figures
from flowportrait.written import write_json

SHIPPED = Path(str(files("flowportrait") / "weights" / "portraitgen" / "limits.json"))
EXCEEDED = 0.01
CLOSED = -0.10
"""Lid gap over eye width under which an eye is closed."""
PER_SPEAKER = 20
QUALITY = 75
"""Of an ordinary JPEG file."""


class Limit(NamedTuple):
    """Beyond ``limit`` is an artefact; ``mean`` and ``spread`` are of real pictures."""

    limit: float
    mean: float
    spread: float

    def beyond(self, value: float) -> float:
        """Standard deviations past the limit, negative inside."""
        return (value - self.limit) / self.spread


@dataclass(frozen=True)
class Limits:
    """by scale and detector; face: mean and spread ``[6]`` of the log ratios of real faces."""

    table: Mapping[Scale, Mapping[str, Limit]]
    face: tuple[np.ndarray, np.ndarray]

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls) -> Limits:
        """Those that ship."""
        return cls.read(SHIPPED)

    @classmethod
    def read(cls, path: Path) -> Limits:
        """What ``fit`` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        table = {scale: {name: Limit(*values) for name, values in own.items()} for scale, own in data["limits"].items()}
        return cls(table, (np.array(data["face"][0]), np.array(data["face"][1])))

    def measure(self, look: Look) -> dict[str, float | None]:
        """Every measured artefact's number; None where it does not apply."""
        found: dict[str, float | None] = {
            artefact.name: artefact.detector(look) for artefact in CATALOGUE if artefact.detector
        }
        found["proportions"] = None
        if look.landmarks is not None and look.scale is not None:
            found["proportions"] = float(np.abs((ratios(look.landmarks) - self.face[0]) / self.face[1]).max())
        return found

    def beyond(self, look: Look) -> dict[str, float | None]:
        """The same in spreads past the limits; ``missing_face`` and ``second_face`` are 1 or −1."""
        scale = look.scale or "small"
        found = {
            name: None if value is None or name not in self.table[scale] else self.table[scale][name].beyond(value)
            for name, value in self.measure(look).items()
        }
        found["missing_face"] = 1.0 if look.faces == 0 else -1.0
        found["second_face"] = None if look.faces == 0 else (1.0 if look.faces > 1 else -1.0)
        return found


def artefacts(look: Look, limits: Limits | None = None) -> dict[str, bool | None]:
    """Which artefacts a picture has; None where nobody measured."""
    found = (limits or Limits.load()).beyond(look)
    return {name: None if value is None else value > 0 for name, value in found.items()}


def fit(faces: Faces) -> dict[str, object]:
    """Limits from the training speakers' faces, as stored."""
    looks: dict[Scale, list[Look]] = {"large": [], "small": []}
    rng = np.random.default_rng(0)
    with FaceTracker(still=True) as tracker:
        for speaker in np.unique(faces.speaker):
            rows = np.flatnonzero((faces.speaker == speaker) & ~faces.dev)
            for row in rng.choice(rows, min(len(rows), PER_SPEAKER), replace=False):
                looks["small"].append(glance(faces.small[row], tracker))
                if faces.native[row] >= NEAREST["large"]:
                    looks["large"].append(glance(faces.large[row], tracker))
    shapes = np.stack([ratios(look.landmarks) for look in looks["large"] if look.landmarks is not None])
    normal = shapes.mean(0), shapes.std(0)
    bare = Limits({}, normal)
    table = {
        scale: _limits([bare.measure(look) | figures(look) for look in track(own, scale)])
        for scale, own in looks.items()
    }
    compressed = _limit(np.array([blocks(Look(ordinary(seen.picture), 0)) for seen in looks["large"]], float))
    for own in table.values():
        own["blocks"] = compressed
    return {
        "face": [values.tolist() for values in normal],
        "pictures": {scale: len(own) for scale, own in looks.items()},
        "limits": table,
    }


def _limits(rows: list[dict[str, float | None]]) -> dict[str, list[float]]:
    table = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows if row[name] is not None])
        if len(values) < 50:
            continue
        table[name] = _limit(values)
        if name == "closed_eyes":
            table[name][0] = CLOSED
    return table


def _limit(values: np.ndarray) -> list[float]:
    return [float(np.quantile(values, 1 - EXCEEDED)), float(values.mean()), float(values.std())]


def ordinary(picture: np.ndarray) -> np.ndarray:
    """A picture ``[H, W, 3]`` as JPEG files mostly are."""
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


if __name__ == "__main__":
    cv2.setNumThreads(1)
    target = Path(sys.argv[2])
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, fit(Faces.load(Path(sys.argv[1]))))
