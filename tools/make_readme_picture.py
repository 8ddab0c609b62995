"""Make the moving picture of the README: a photo that talks, a painting that talks, and a dubbed video.

    python -m tools.make_readme_picture --output docs/images/talking.webp

The faces are the example portraits of the package (``NOTICE`` names their source); the painting is one of them after a
Kuwahara filter, and the dubbed video is one that this program makes first.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import flowportrait as fp
from flowportrait.files import atomic_write
from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.media.image import read_image
from flowportrait.media.video import FPS, iter_frames
from flowportrait.samples import SPEECH, portrait_path

SECONDS = 4.0
SIDE = 320
EVERY = 2
"""Every n-th frame is shown."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--checkpoint", default="rl")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tiles = make_videos(fp.AnimatePipeline.from_pretrained(options.checkpoint), Path(folder))
        streams = [islice(iter_frames(path), 0, round(SECONDS * FPS), EVERY) for path in tiles.values()]
        frames = [label(np.hstack(shown), list(tiles)) for shown in zip(*streams, strict=False)]
    with atomic_write(options.output) as unfinished:
        frames[0].save(
            unfinished, "WEBP", save_all=True, append_images=frames[1:], duration=1000 * EVERY // FPS, loop=0,
            quality=72, method=6,
        )  # fmt: skip


def make_videos(pipeline: fp.AnimatePipeline, folder: Path) -> dict[str, Path]:
    """Make the three videos of ``SIDE`` pixels; returns caption → file."""
    speech = read_audio(SPEECH)
    first, second = (speech[round(start * SAMPLE_RATE) :][: round(SECONDS * SAMPLE_RATE)] for start in (0.0, 5.0))
    photo, painting, person = (read_image(portrait_path(name)) for name in ("hair-tied", "short-hair", "beard"))
    paths = {name: folder / f"{name.replace(' ', '_')}.mp4" for name in ("a photo", "a painting", "a dubbed video")}
    pipeline(photo, first, size=SIDE, crop=True, seed=1).save(paths["a photo"])
    pipeline(paint(painting), second, size=SIDE, crop=True, seed=2).save(paths["a painting"])
    original = folder / "original.mp4"
    pipeline(person, first, size=SIDE, crop=True, seed=3).save(original)
    pipeline.dub(original, second).save(paths["a dubbed video"])
    return paths


def paint(photo: np.ndarray, radius: int = 6) -> np.ndarray:
    """Return a photo ``[H, W, 3]`` uint8 as a painting: each pixel is the mean of the calmest of four windows around it
    (Kuwahara et al. 1976). What is bright as far as the border becomes a warm ground.
    """
    ground = np.array([214, 186, 140], np.float32) / 255
    labels = cv2.connectedComponents((cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY) > 170).astype(np.uint8))[1]
    touching = set(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])) - {0}
    bright = cv2.GaussianBlur(np.isin(labels, list(touching)).astype(np.float32), (0, 0), 3)[..., None]
    picture = photo.astype(np.float32) * (1 - bright + bright * ground)
    size = (radius + 1, radius + 1)
    corners = ((0, 0), (radius, 0), (0, radius), (radius, radius))
    means = np.stack([cv2.blur(picture, size, anchor=corner) for corner in corners])
    luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    variances = np.stack(
        [cv2.blur(luma**2, size, anchor=corner) - cv2.blur(luma, size, anchor=corner) ** 2 for corner in corners]
    )
    calmest = variances.argmin(0)[None, ..., None]
    return np.take_along_axis(means, calmest, 0)[0].clip(0, 255).astype(np.uint8)


def label(frame: np.ndarray, captions: list[str]) -> Image.Image:
    """Return a frame with a caption below each tile."""
    picture = Image.new("RGB", (frame.shape[1], frame.shape[0] + 28), "white")
    picture.paste(Image.fromarray(frame))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(16)
    for place, caption in enumerate(captions):
        draw.text((SIDE * (place + 0.5), frame.shape[0] + 14), caption, "#444444", font, anchor="mm")
    return picture


if __name__ == "__main__":
    main()
