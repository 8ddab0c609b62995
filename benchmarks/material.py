"""What measurements are made on: clips of ``dev`` speakers, portraits, and voices without a video.

Everything that is chosen (a recipe, a setting) is chosen on ``choice_clips``; what is claimed of shipped checkpoints
is measured on ``headline_clips``, which nothing is chosen on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from PIL import Image
from tyro import conf

from flowportrait.data.corpus import FaceClip, Record, corpus_records
from flowportrait.errors import BadInput
from flowportrait.evaluation.statistics import Estimate, bootstrap_mean
from flowportrait.files import atomic_write
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait

HEADLINE_CLIPS = 32
"""Number of clips that the shipped checkpoints are measured on; recipes and settings are never chosen on them."""
_SHORT_FRAMES = 60
Item = TypeVar("Item")

Photo = conf.Positional[Annotated[Path, conf.arg(metavar="PHOTO")]]
"""A photo, without an option's name."""
Speech = conf.Positional[Annotated[Path, conf.arg(metavar="SPEECH")]]
"""A recording of speech, without an option's name."""


def headline_clips(corpus: Path, count: int = HEADLINE_CLIPS) -> dict[str, FaceClip]:
    """Return short clips of ``dev`` speakers for claims about shipped checkpoints, by name."""
    return {Path(name).name: load_clip(corpus, name) for name in spread_evenly(_short_names(corpus), count)}


def choice_clips(corpus: Path, count: int) -> dict[str, FaceClip]:
    """Return short clips of ``dev`` speakers that are not among the headline clips, by name."""
    names = _short_names(corpus)
    taken = set(spread_evenly(names, HEADLINE_CLIPS))
    others = [name for name in names if name not in taken]
    return {Path(name).name: load_clip(corpus, name) for name in spread_evenly(others, count)}


def dev_records(corpus: Path) -> list[Record]:
    """Return what a corpus lists about each clip of its ``dev`` speakers."""
    return [record for record in corpus_records(corpus) if record["split"] == "dev"]


def load_clip(corpus: Path, name: str) -> FaceClip:
    """Return one clip of a corpus."""
    return FaceClip.load(corpus / "clips" / f"{name}.safetensors")


def spread_evenly(items: Sequence[Item], count: int) -> list[Item]:
    """Return ``count`` of the items, evenly spaced; all where there are fewer."""
    return [items[place] for place in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]


def load_or_make(path: Path, make: Callable[[], Any]) -> Any:
    """Return what is in a file of ``torch.save``; it is made and saved there first if the file is missing."""
    import torch

    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            torch.save(make(), partial)
    return torch.load(path, weights_only=False)


def portraits(footage: Path, size: int = 512, count: int | None = None) -> list[Portrait]:
    """Return the portraits of a footage folder, in the order of their names.

    Raises:
        BadInput: the folder has no portraits.
    """
    paths = picture_paths(footage / "portraits")[:count]
    return [Portrait.from_image(read_image(path), size, path.name) for path in paths]


def picture_paths(folder: Path) -> list[Path]:
    """Return the photos of a folder, in the order of their names.

    Raises:
        BadInput: there are none.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    if not paths:
        raise BadInput(f"No pictures in {folder}: give a folder that has some.")
    return paths


def speech_paths(footage: Path) -> list[Path]:
    """Return the recordings of a footage folder, in the order of their names.

    Raises:
        BadInput: there are none.
    """
    paths = sorted((footage / "speech").glob("*.wav"))
    if not paths:
        raise BadInput(f"No recordings in {footage / 'speech'}: give footage with speech/*.wav.")
    return paths


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a picture ``[H, W, 3]``; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def read_split(footage: Path) -> dict[str, str]:
    """Return the split of all that ``split.tsv`` of a footage folder lists: files, photos without ending, or people.

    Raises:
        BadInput: there is no split.tsv.
    """
    if not (footage / "split.tsv").is_file():
        raise BadInput(f"No split.tsv in {footage}: give footage that says who is dev.")
    lines = (footage / "split.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return {name: split for name, _, split in (line.split("\t") for line in lines)}


def read_dev_names(footage: Path) -> list[str]:
    """Return what ``read_split`` calls dev.

    Raises:
        BadInput: there is no split.tsv.
    """
    return [name for name, split in read_split(footage).items() if split == "dev"]


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
    return [record["name"] for record in dev_records(corpus) if record["frames"] < _SHORT_FRAMES]
