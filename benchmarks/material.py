"""What measurements are made on: clips of ``dev`` speakers, portraits, and voices without a video.

Everything that is chosen (a recipe, a setting) is chosen on ``choice_clips``; what is claimed of shipped checkpoints
is measured on ``headline_clips``, which nothing is chosen on.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from tyro import conf

from flowportrait.data.corpus import FaceClip
from flowportrait.errors import BadInput
from flowportrait.evaluation.statistics import Estimate, bootstrap_mean
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


def read_dev_names(footage: Path) -> list[str]:
    """Return what ``split.tsv`` of a footage folder lists as dev: files, photos without ending, or people.

    Raises:
        BadInput: there is no split.tsv.
    """
    if not (footage / "split.tsv").is_file():
        raise BadInput(f"No split.tsv in {footage}: give footage that says who is dev.")
    lines = (footage / "split.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [name for name, _, split in (line.split("\t") for line in lines) if split == "dev"]


def measure_frames(
    path: Path, frames: Iterable[np.ndarray], audio: np.ndarray, metrics: Collection[str]
) -> dict[str, float]:
    """Write a video, unless it is there already, and return figures of the evaluation; NaN where there is none."""
    from flowportrait.evaluation.measure import measure_video
    from flowportrait.media.write_video import write_video

    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, frames, audio)
    row = measure_video(path).row
    values = {metric: row.get(metric) for metric in metrics}
    return {key: float(value) if isinstance(value, int | float) else np.nan for key, value in values.items()}


def mean_of_known(values: Sequence[float | None] | np.ndarray) -> Estimate | None:
    """Return the mean of the finite values with its interval; None if there is none."""
    known = np.array([np.nan if value is None else value for value in values], float)
    known = known[np.isfinite(known)]
    return bootstrap_mean(known) if len(known) else None


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
