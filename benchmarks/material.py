"""What measurements are made on: clips of ``dev`` speakers, portraits, and voices without a video.

Everything that is chosen (a recipe, a setting) is chosen on ``choice_clips``; what is claimed of shipped checkpoints
is measured on ``headline_clips``, which nothing is chosen on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
from tyro import conf

from flowportrait.data.corpus import FaceClip
from flowportrait.errors import BadInput
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait

HEADLINE_CLIPS = 32
"""Number of clips that the shipped checkpoints are measured on; recipes and settings are never chosen on them."""
_SHORT_FRAMES = 60

Photo = conf.Positional[Annotated[Path, conf.arg(metavar="PHOTO")]]
"""A photo, without an option's name."""
Speech = conf.Positional[Annotated[Path, conf.arg(metavar="SPEECH")]]
"""A recording of speech, without an option's name."""


def headline_clips(corpus: Path, count: int = HEADLINE_CLIPS) -> dict[str, FaceClip]:
    """Return short clips of ``dev`` speakers for claims about shipped checkpoints, by name."""
    names = _short_names(corpus)
    return _load_clips(corpus, [names[place] for place in _even_places(len(names), count)])


def choice_clips(corpus: Path, count: int) -> dict[str, FaceClip]:
    """Return short clips of ``dev`` speakers that are not among the headline clips, by name."""
    names = _short_names(corpus)
    taken = set(_even_places(len(names), HEADLINE_CLIPS))
    others = [name for place, name in enumerate(names) if place not in taken]
    return _load_clips(corpus, [others[place] for place in _even_places(len(others), count)])


def portraits(footage: Path, size: int | None = None, count: int | None = None) -> list[Portrait]:
    """Return the portraits of a footage folder, in the order of their names.

    Raises:
        BadInput: the folder has no portraits.
    """
    paths = picture_paths(footage / "portraits")[:count]
    return [Portrait.from_image(read_image(path), *([size] if size else []), name=path.name) for path in paths]


def picture_paths(folder: Path) -> list[Path]:
    """Return the photos of a folder, in the order of their names.

    Raises:
        BadInput: there are none.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    if not paths:
        raise BadInput(f"No pictures in {folder}: give a folder that has some.")
    return paths


def use_one_thread() -> None:
    """Let OpenCV and torch use one thread each, so that times are processor times."""
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _short_names(corpus: Path) -> list[str]:
    records = [json.loads(line) for line in (corpus / "clips.jsonl").read_text().splitlines()]
    return [record["name"] for record in records if record["split"] == "dev" and record["frames"] < _SHORT_FRAMES]


def _even_places(length: int, count: int) -> list[int]:
    places: list[int] = np.linspace(0, length - 1, count).astype(int).tolist()
    return places


def _load_clips(corpus: Path, names: list[str]) -> dict[str, FaceClip]:
    return {Path(name).name: FaceClip.load(corpus / "clips" / f"{name}.safetensors") for name in names}
