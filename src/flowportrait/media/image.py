"""Read photos: any picture file to upright 8-bit sRGB."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import av
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.colour import to_srgb
from flowportrait.media.containers import check_is_file, main_sound_stream, main_video_stream, open_media

if TYPE_CHECKING:
    from PIL import Image


MAX_IMAGE_PIXELS = 200_000_000
"""Pixels of the largest picture that is read."""
WHITE_BACKGROUND = (255, 255, 255)

_FORMATS = {
    "JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "ICO", "TGA", "PCX", "SGI", "PSD",
}  # fmt: skip
"""Pillow's names of the formats that are read.

Not among them: formats that are run as a program (EPS) or are made of further files.
"""
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"heif"}
_HEAD = 1 << 16
_BAND_PIXELS = 4_000_000


def read_image(path: str | Path, background: tuple[int, int, int] = WHITE_BACKGROUND) -> np.ndarray:
    """Decode ``path`` to ``[H, W, 3]`` uint8 RGB.

    Colours are converted to sRGB from the space that the file states (``media.colour``), camera rotation (EXIF) is
    applied, transparency is blended over ``background``, 16-bit samples are scaled to 8 bit; grey, palette and CMYK
    pictures become RGB; of animations and bursts the first frame is taken.

    Raises:
        BadInput: the file is missing, empty, not a picture, damaged, or beyond 200 megapixels.
    """
    path = Path(path)
    check_is_file(path, "image")
    if path.stat().st_size == 0:
        raise BadInput(f"{path} is empty (0 bytes): copy or download it again.")
    try:
        with path.open("rb") as file:
            opened = _open(file)
            if opened is not None:
                if opened.width * opened.height > MAX_IMAGE_PIXELS:
                    raise BadInput(
                        f"{path} has {opened.width}x{opened.height} px, over {MAX_IMAGE_PIXELS // 10**6} megapixels: "
                        "give a smaller picture."
                    )
                file.seek(0)
                return _decode(opened, file.read(_HEAD), background)
    except BadInput:
        raise
    except Exception as error:
        # Decoders raise nearly any error on damaged files, sometimes with several lines.
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, struct.error):
            reason = "it ends within its header"
        raise BadInput(f"{path} cannot be read as a picture ({reason}): it may be damaged.") from error
    raise BadInput(_not_a_picture_message(path))


def pillow_to_rgb(image: Image.Image, background: tuple[int, int, int] = WHITE_BACKGROUND) -> np.ndarray:
    """Return the pixels ``[H, W, 3]`` uint8 RGB of a Pillow image, converted as by ``read_image``.

    The image itself is not changed.
    """
    return _decode(image.copy(), b"", background)


def is_image_file(path: str | Path) -> bool:
    """Return whether a file is a picture by its first bytes, complete or damaged."""
    try:
        with open(path, "rb") as file:
            return _open(file) is not None
    except Exception:
        return False


def _open(file: BinaryIO) -> Image.Image | None:
    """Return the picture in an open file, not yet decoded; None if it is none.

    It does what ``PIL.Image.open`` does, except for its limit of pixels, which is one number for the whole process and
    half of ours.
    """
    from PIL import Image

    head = file.read(16)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        from pi_heif import HeifImageFile

        file.seek(0)
        return HeifImageFile(file)
    tried_formats: set[str] = set()
    for load_plugins in (Image.preinit, Image.init):
        load_plugins()
        for name in sorted(_FORMATS.intersection(Image.OPEN) - tried_formats, key=Image.ID.index):
            tried_formats.add(name)
            if name == "TGA" and not str(file.name).lower().endswith(".tga"):
                # TGA has no signature: many files that are no pictures would be accepted.
                continue
            open_image, accepts = Image.OPEN[name]
            accepted = accepts(head) if accepts else True
            if not accepted or isinstance(accepted, str):
                continue
            file.seek(0)
            try:
                return open_image(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue
    return None


def _decode(image_file: Image.Image, head: bytes, background: tuple[int, int, int]) -> np.ndarray:
    from PIL import Image, ImageOps

    # Every copy of 200 megapixels takes 800 MB.
    ImageOps.exif_transpose(image_file, in_place=True)
    image = image_file
    if image.mode.startswith(("I", "F")):
        original, image = image, Image.fromarray(_to_uint8(np.asarray(image, np.float64)))
        image.info = {key: value for key, value in original.info.items() if key != "transparency"}
    image = to_srgb(image, head)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (*background, 255)), rgba)
    return _to_rgb_array(image)


def _to_rgb_array(image: Image.Image) -> np.ndarray:
    """Return ``[H, W, 3]`` uint8, converted band by band: as a whole the picture would be held three times."""
    result = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        result[top : top + rows] = np.asarray(band.convert("RGB"))
    return result


def _not_a_picture_message(path: Path) -> str:
    """Return the message for a file that is no picture: people give their video or their speech as a photo."""
    try:
        with open_media(path) as container:
            if main_video_stream(container) is not None:
                return f"{path} is a video, not a picture: give it as --video, or a frame of it as a picture."
            if main_sound_stream(container) is not None:
                return f"{path} is sound, not a picture: give it as --audio."
    except (av.FFmpegError, OSError, BadInput):
        pass
    return f"{path} is not a picture: give a jpg, png, webp, heic, avif, bmp or tiff file."


def _to_uint8(samples: np.ndarray) -> np.ndarray:
    """Convert grey samples deeper than 8 bit (16-bit integers, or floats in [0, 1]) to uint8."""
    peak = samples.max(initial=0.0)
    full = 1.0 if peak <= 1.0 else 255.0 if peak <= 255.0 else 65535.0
    return np.round(samples.clip(0, full) * (255.0 / full)).astype(np.uint8)
