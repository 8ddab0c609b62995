"""What the artefact detectors accuse real pictures of, and what damage they see.

    python benchmarks/artefacts.py --faces faces.safetensors [--photos FOLDER]

Faces of people nobody learned from, framed at 115 px; landmarks are those of the undamaged picture. Per damage the
share of pictures in which each detector fires, at three strengths: its own should rise to all, the others should stay
where they are. Photos: a folder of portraits as people upload them, each listed with what it is accused of.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from flowportrait.corruption import corruptions
from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.portraitgen.detectors import FaceView, find_face, find_framed_face
from flowportrait.portraitgen.measured_judge import DetectorLimits, FramedFaces


@dataclass(frozen=True)
class Options:
    """What is looked at."""

    faces: Path
    photos: Path | None = None
    pictures: int = 60


DAMAGE = [corruptions("still")[name] for name in ("chroma", "airbrush", "tint", "shine", "blur", "jpeg")]
"""Each hurts what one detector looks for."""


def main(options: Options) -> None:
    """Measure and print."""
    unseen_speakers = FramedFaces.load(options.faces).unseen_speakers()
    rows = np.random.default_rng(0).choice(
        np.flatnonzero(unseen_speakers.native >= 40), options.pictures, replace=False
    )
    with FaceTracker(still=True) as tracker:
        looks = [find_framed_face(unseen_speakers.large[row], tracker) for row in rows]
    looks = [seen for seen in looks if seen.landmarks is not None]
    rates = {"as filmed": fired([seen.picture for seen in looks], looks)}
    for act in DAMAGE:
        for strength in act.strengths:
            rates[f"{act.name} {strength:g}"] = fired([act.damage(seen, strength) for seen in looks], looks)
    kinds = [name for name, value in rates["as filmed"].items() if value is not None]
    table = Table(title=f"share of {len(looks)} pictures in which a detector fires (*: the one that should)")
    for head in ("picture", *kinds):
        table.add_column(head, justify="left" if head == "picture" else "right")
    for name, own in rates.items():
        meant = next((act.hurts[0] for act in DAMAGE if name.startswith(act.name)), "")
        cells = (f"{own[kind] or 0:.0%}{'*' if kind == meant else ''}" for kind in kinds)
        table.add_row(name, *cells)
    console = Console(width=190)
    console.print(table)
    for path in sorted(options.photos.iterdir()) if options.photos else ():
        found = DetectorLimits.load().beyond(find_face(read_image(path)))
        accused = [f"{name} {value:.1f}" for name, value in found.items() if value is not None and value > 0]
        console.print(f"{path.name}: {', '.join(accused) or 'nothing'}")


def fired(pictures: list[np.ndarray], looks: list[FaceView]) -> dict[str, float | None]:
    """Share of pictures beyond each limit, their faces where they were."""
    limits, rows = DetectorLimits.load(), []
    for picture, seen in zip(pictures, looks, strict=True):
        assert seen.landmarks is not None, "only pictures with a face are asked about"
        assert seen.blendshapes is not None, "a face has both"
        rows.append(limits.beyond(FaceView.at(picture, [(seen.landmarks, seen.blendshapes)])))
    shares: dict[str, float | None] = {}
    for name in rows[0]:
        known = [row[name] for row in rows if row[name] is not None]
        shares[name] = float(np.mean([value > 0 for value in known if value is not None])) if known else None
    return shares


if __name__ == "__main__":
    cv2.setNumThreads(1)
    main(tyro.cli(Options))
