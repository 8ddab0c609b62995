"""Find the thresholds by which a picture shows teeth, on training photos with masks.

    python -m tools.fit_teeth_threshold --data FOOTAGE

    pixels inside the mouths of all photos ──Otsu──► BRIGHT (luma over skin), UNSATURATED (saturation)
    share of such pixels in each photo     ──emptiest tenth of [0, 1]──► PRESENT

Nobody labelled teeth: both thresholds of pixels divide the two modes of all interiors (Otsu 1979), and photos with and
without teeth are divided where the fewest photos are. The three numbers are written into ``benchmarks/teeth.py`` by
hand. Only photos that ``split.tsv`` gives to training are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tyro
from benchmarks.teeth import luma_and_saturation
from PIL import Image

from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.rendering.mouth_geometry import skin_colour

MOUTH = 10
"""Class of the inside of the mouth in the masks of CelebAMask-HQ."""
_LEAST_PIXELS = 60
_BINS = 256


@dataclass(frozen=True)
class Config:
    """Which photos are read."""

    data: Path
    # footage with celebamask/ and split.tsv


def training_photos(data: Path) -> list[str]:
    """Return the names, without ending, of the photos of celebamask that are not held out."""
    rows = [line.split("\t") for line in (data / "split.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    return [name for name, _, split in rows if name.startswith("celebamask/") and split != "dev"]


def otsu_threshold(values: np.ndarray, high: float) -> float:
    """Return the threshold in [0, high] that leaves the least variance within the two sides of values ``[N]``."""
    counts, edges = np.histogram(values, _BINS, (0, high))
    centres = (edges[1:] + edges[:-1]) / 2
    weight, moment = np.cumsum(counts), np.cumsum(counts * centres)
    between = (moment[-1] / weight[-1] * weight - moment) ** 2 / np.maximum(weight * (weight[-1] - weight), 1e-9)
    return float(centres[between.argmax()])


def main(config: Config) -> None:
    """Read the photos and print the thresholds."""
    found = []
    with FaceTracker(still=True) as tracker:
        for name in training_photos(config.data):
            inside = (np.array(Image.open(config.data / f"{name}.png")) == MOUTH).astype(np.uint8)
            inside = cv2.erode(inside, np.ones((3, 3), np.uint8)) > 0
            if inside.sum() < _LEAST_PIXELS:
                continue
            photo = read_image(config.data / f"{name}.jpg")
            faces = tracker.detect(photo)
            if faces:
                found.append(luma_and_saturation(photo[inside], skin_colour(photo, faces[0][0])))
    bright = otsu_threshold(np.concatenate([luma for luma, _ in found]), 2.0)
    unsaturated = otsu_threshold(np.concatenate([saturation for _, saturation in found]), 1.0)
    shares = [float(np.mean((luma > bright) & (saturation < unsaturated))) for luma, saturation in found]
    counts, edges = np.histogram(shares, 10, (0, 1))
    emptiest = int(counts.argmin())
    print(f"{len(found)} photos; photos by tenths of the share of teeth: {counts.tolist()}")
    print(f"BRIGHT {bright:.2f}  UNSATURATED {unsaturated:.2f}  PRESENT {edges[emptiest : emptiest + 2].mean():.2f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
