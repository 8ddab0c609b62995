"""Short clips of ``dev`` speakers: those of the headline table, and the others, on which things are chosen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from flowportrait.data.corpus import FaceClip

HEADLINE_CLIPS = 32
"""Clips of unseen speakers that ``heldout.py`` takes for the shipped checkpoints: left out where recipes are chosen."""
_SHORT = 60


def headline(corpus: Path, count: int = HEADLINE_CLIPS) -> dict[str, FaceClip]:
    """Clips of ``heldout.py``'s table of speakers, by name."""
    names = _names(corpus)
    return _clips(corpus, [names[place] for place in _places(names, count)])


def test_clips(corpus: Path, count: int) -> dict[str, FaceClip]:
    """Clips that the headline table does not use, by name."""
    names = _names(corpus)
    taken = set(_places(names, HEADLINE_CLIPS))
    rest = [name for place, name in enumerate(names) if place not in taken]
    return _clips(corpus, [rest[place] for place in _places(rest, count)])


def _names(corpus: Path) -> list[str]:
    records = [json.loads(line) for line in (corpus / "clips.jsonl").read_text().splitlines()]
    return [record["name"] for record in records if record["split"] == "dev" and record["frames"] < _SHORT]


def _places(names: list[str], count: int) -> list[int]:
    places: list[int] = np.linspace(0, len(names) - 1, count).astype(int).tolist()
    return places


def _clips(corpus: Path, names: list[str]) -> dict[str, FaceClip]:
    return {Path(name).name: FaceClip.load(corpus / "clips" / f"{name}.safetensors") for name in names}
