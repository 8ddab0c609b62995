"""Make training pairs of open mouths for the retouching network, from footage in the wild and from photos.

    python -m tools.make_mouth_pairs --data FOOTAGE --output PAIRS

    talkvid, hdtf, celebv   frame s warped to frames t, t+1, as in tools.make_retouch_pairs; open mouths more often
    london                  the neutral photo warped to the smiling one, and the other way round
    celebamask              the photo with the model's interior between its lips ─► base      the photo ─► truth
                            the photo with its lips closed by the renderer       ─► source

These pictures are large: windows are cut from 512 px and more, so teeth in them are sharp. Only training people of
split.tsv are used. Every sixth of them is held out from training and written apart (``held-…``), for choosing settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import tyro
from rich.progress import track
from tools.make_retouch_pairs import drawn_row, portrait_pairs, save_pairs, to_byte

from flowportrait.media.faces import FaceTracker, interpolate_missing_frames
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import iter_frames
from flowportrait.rendering.motion_basis import HEAD, LOWER_FACE, MotionBasis
from flowportrait.rendering.mouth import PHOTO_OPENING, Mouth
from flowportrait.rendering.mouth_geometry import (
    MouthFrame,
    cut_mouth_window,
    mouth_state,
    mouth_window_transform,
    skin_colour,
)
from flowportrait.rendering.renderer import Renderer
from flowportrait.rendering.self_reenactment import portrait_from_frame

_SIZE = 512
"""Side of the portraits' crops in px."""
_EVERY = 6
"""Every sixth person is held out."""
_OPENING, _LEAST = 0.08, 0.15
"""Opening in eye distances from which on all frames are as likely to be chosen, and the weight of a shut mouth."""

Kind = Literal["clips", "london", "celebamask"]


@dataclass(frozen=True)
class Config:
    """Which footage is used for pairs."""

    data: Path
    # footage with split.tsv
    output: Path
    # folder for pairs-KIND.safetensors and held-KIND.safetensors
    kind: Kind = "clips"
    # where the pairs are from
    folders: tuple[str, ...] = ("talkvid", "hdtf", "celebv")
    # folders of clips
    frames: int = 125
    # frames of each clip
    portraits: int = 3
    # portraits of each clip: the most closed mouth and others
    per_portrait: int = 10
    # pairs for each portrait


def training_rows(data: Path, folder: str) -> list[str]:
    """Return the files, as split.tsv names them, of the people of a folder that training may use."""
    rows = [line.split("\t") for line in (data / "split.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    return [name for name, _, split in rows if name.split("/")[0] == folder and split != "dev"]


def track_frames(frames: list[np.ndarray], still: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return landmarks ``[T, 478, 3]``, blendshapes ``[T, 52]`` and whether a face was found ``[T]``."""
    with FaceTracker(still=still) as tracker:
        faces = tracker.track(frames)
    if faces.valid.any() and not still:
        points, shapes = (interpolate_missing_frames(v, faces.valid) for v in (faces.landmarks, faces.blendshapes))
        return points, shapes, faces.valid
    return faces.landmarks, faces.blendshapes, faces.valid


def lip_gap(points: np.ndarray) -> np.ndarray:
    """Return the opening ``[T]`` in eye distances for landmarks ``[T, 478, 3]``."""
    gap = np.linalg.norm(points[:, 14, :2] - points[:, 13, :2], axis=-1)
    return gap / np.linalg.norm(points[:, 33, :2] - points[:, 263, :2], axis=-1)


def clip_rows(path: Path, config: Config, rng: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
    """Yield the pairs of a clip."""
    frames = [frame for _, frame in zip(range(config.frames), iter_frames(path), strict=False)]
    points, shapes, valid = track_frames(frames)
    if valid.mean() < 0.9:
        return
    gap = lip_gap(points)
    sources = [int(gap.argmin()), *rng.integers(len(frames), size=config.portraits - 1).tolist()]
    weight = _LEAST + np.minimum(gap[:-1] / _OPENING, 1)
    count = min(config.per_portrait, len(weight))
    for source in sources:
        firsts = rng.choice(len(weight), count, replace=False, p=weight / weight.sum())
        yield from portrait_pairs(frames, points, shapes, source, [(t, t + 1) for t in firsts.tolist()], _SIZE)


def smile_rows(paths: list[Path]) -> Iterator[dict[str, np.ndarray]]:
    """Yield the pairs of two photos of one person."""
    frames = [read_image(path) for path in paths]
    points, shapes, valid = track_frames(frames, still=True)
    if valid.all():
        for source, other in ((0, 1), (1, 0)):
            # Twice, for either share of the tracked landmarks.
            yield from portrait_pairs(frames, points, shapes, source, [(other, other)] * 2, _SIZE)


def photo_rows(path: Path) -> Iterator[dict[str, np.ndarray]]:
    """Yield the pair of a photo whose mouth is open, if it is."""
    photo = read_image(path)
    points, shapes, valid = track_frames([photo], still=True)
    if not valid.all() or lip_gap(points)[0] < PHOTO_OPENING:
        return
    portrait = portrait_from_frame(photo, points[0], shapes[0], _SIZE)
    mouth, matrix = MouthFrame(portrait.landmarks), mouth_window_transform(portrait.landmarks)
    source, source_inner = _with_closed_lips(portrait)
    base = portrait.crop.copy()
    Mouth(portrait.crop, portrait.landmarks, keep_photo_interior=False).draw(base, portrait.landmarks)
    row = drawn_row(base, portrait.landmarks, mouth) | {"truth": cut_mouth_window(portrait.crop, matrix)}
    yield {
        "source": source,
        "source_inner": source_inner,
        "skin": skin_colour(portrait.crop, portrait.landmarks).astype(np.float32),
    } | {name: np.stack([value, value]) for name, value in row.items()}


def _with_closed_lips(portrait: Portrait) -> tuple[np.ndarray, np.ndarray]:
    """Return the window of the portrait with its lips closed, and its opening."""
    basis = MotionBasis.load()
    motion, identity = basis.encode(portrait.landmarks[None], portrait.blendshapes[None], smooth=False)
    motion[:, LOWER_FACE] = 0
    motion[:, HEAD] = 0
    closed = basis.decode(motion, identity).numpy()[0]
    matrix = mouth_window_transform(closed)
    drawn = Renderer(portrait, retouch=False).draw(closed)
    return cut_mouth_window(drawn, matrix), to_byte(mouth_state(MouthFrame(closed), closed, matrix).inner)


def rows_by_person(config: Config) -> Iterator[Iterator[dict[str, np.ndarray]]]:
    """Yield the pairs of one person after the other."""
    if config.kind == "clips":
        names = [name for folder in config.folders for name in training_rows(config.data, folder)]
        for number, name in enumerate(names):
            yield clip_rows(config.data / name, config, np.random.default_rng(number))
    elif config.kind == "london":
        for name in training_rows(config.data, "london"):
            yield smile_rows([config.data / f"{name}_{look}.jpg" for look in ("neutral", "smiling")])
    else:
        for name in training_rows(config.data, "celebamask"):
            yield photo_rows(config.data / f"{name}.jpg")


def main(config: Config) -> None:
    """Cut the pairs and write them."""
    cv2.setNumThreads(1)
    columns: dict[str, dict[str, list[Any]]] = {"pairs": {}, "held": {}}
    for number, rows in enumerate(track(rows_by_person(config), description="cutting pairs")):
        for row in rows:
            for name, value in row.items():
                columns["held" if number % _EVERY == _EVERY - 1 else "pairs"].setdefault(name, []).append(value)
    for part, values in columns.items():
        save_pairs(values, config.output / f"{part}-{config.kind}.safetensors")


if __name__ == "__main__":
    main(tyro.cli(Config))
