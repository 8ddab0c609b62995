"""Photos in: any picture file to upright 8-bit RGB, transparency laid over white."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flowportrait.errors import BadInput

_MAX_PIXELS = 200_000_000


def read_image(path: str | Path) -> np.ndarray:
    """Decode ``path`` to ``[H, W, 3]`` uint8 RGB.

    Camera rotation (EXIF) is applied, transparency is blended over white, 16-bit samples are scaled to 8
    bit, grey, palette and CMYK pictures become RGB; of animations the first frame is taken.

    Raises:
        BadInput: the file is missing, empty, not a picture, damaged, or beyond 200 megapixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise BadInput(f"No image file at {path}: check the path.")
    if path.stat().st_size == 0:
        raise BadInput(f"{path} is empty (0 bytes): copy or download it again.")
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > _MAX_PIXELS:
                raise BadInput(f"{path} has over {_MAX_PIXELS // 10**6} megapixels: give a smaller picture.")
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith(("I", "F")):
                return _deep_grey(np.asarray(image, np.float64))
            if image.has_transparency_data:
                rgba = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise BadInput(f"{path} is not a picture: give a jpg, png, webp, bmp or tiff file.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(f"{path} cannot be read as a picture ({error}): it may be damaged.") from error


def _deep_grey(samples: np.ndarray) -> np.ndarray:
    """Grey samples deeper than 8 bit (16-bit integers, or floats in [0, 1]) to RGB."""
    peak = samples.max(initial=0.0)
    full = 1.0 if peak <= 1.0 else 255.0 if peak <= 255.0 else 65535.0
    grey = np.round(samples.clip(0, full) * (255.0 / full)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
