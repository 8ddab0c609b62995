"""Make the example portraits in ``samples/``.

    python -m tools.make_sample_portraits LONDON

``LONDON`` is the folder of the Face Research Lab London Set (DeBruine & Jones, CC-BY 4.0): pictures of 900 px named
``NNN_neutral.jpg`` and ``NNN_smiling.jpg``. The astronaut (NASA, public domain) comes from scikit-image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from skimage.data import astronaut

SAMPLES = Path(__file__).parents[1] / "src" / "flowportrait" / "samples"
PORTRAITS = {"hair-tied.jpg": "032_smiling", "beard.jpg": "037_smiling", "short-hair.jpg": "099_smiling"}
"""File names, and the pictures of the set."""
SIDE, QUALITY = 640, 80
"""Side of the written pictures in pixels, and their JPEG quality."""


def main() -> None:
    """Write the four pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("london", type=Path)
    folder = parser.parse_args().london
    for name, picture in PORTRAITS.items():
        image = Image.open(folder / f"{picture}.jpg").convert("RGB")
        # The middle 72 % of the width, from just above the hair.
        side = round(0.72 * image.width)
        left, top = (image.width - side) // 2, round(0.12 * image.height)
        write(image.crop((left, top, left + side, top + side)), name)
    write(Image.fromarray(astronaut()[0:380, 30:410]), "astronaut.jpg")


def write(image: Image.Image, name: str) -> None:
    """Write a square picture."""
    image.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(SAMPLES / name, quality=QUALITY, optimize=True)
    print(name, (SAMPLES / name).stat().st_size)


if __name__ == "__main__":
    main()
