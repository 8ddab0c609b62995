"""Decoded frames as a display shows them: right colours, square pixels, upright, 8-bit RGB.

    YUV ─matrix, range─► R'G'B' ─HDR, wide gamut─► BT.709 ─pixel shape─► square pixels ─display matrix─► upright

What a file does not say is taken as players take it: BT.709 from 720 lines on, else BT.601.
"""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.hdr import BT_2020, DISPLAY_P3, HLG, PQ, ToneMapper

MOST_PIXELS = 8192 * 4320
"""A frame of 8K; more is refused before it is converted."""

_UNSPECIFIED, _BT_709 = 2, 1
_HD_LINES = 720
_LEAST_SQUEEZE = 0.01
"""Pixels that are this near to squares are squares: rounding of writers."""
_MOST_SQUEEZE = 8


class Display:
    """Frames of one stream to ``[H, W, 3]`` uint8 RGB."""

    def __init__(self, path: Path, stream: Any, most_pixels: int = MOST_PIXELS) -> None:
        """path: for messages; stream: ``av.VideoStream`` that the frames are decoded from.

        Raises:
            BadInput: they would have more than ``most_pixels``.
        """
        self._path, self._most_pixels = path, most_pixels
        self._aspect = _pixel_aspect(stream)
        self._size(stream.codec_context)
        self._mapper: tuple[tuple[int, int], ToneMapper] | None = None

    def __call__(self, frame: Any) -> np.ndarray:
        """Pixels of an ``av.VideoFrame``.

        Raises:
            BadInput: it has too many.
        """
        width, height = self._size(frame)
        how: dict[str, Any] = {"format": "rgb24"}
        if (width, height) != (frame.width, frame.height):
            how |= {"width": width, "height": height, "interpolation": "BICUBIC"}
        if frame.colorspace == _UNSPECIFIED and height >= _HD_LINES and not frame.format.is_rgb:
            how["src_colorspace"] = _BT_709
        matrix = _display_matrix(frame)
        return upright(self._sdr(frame).to_ndarray(**how), matrix)

    def _size(self, coded: Any) -> tuple[int, int]:
        """Width and height with square pixels of what has ``width`` and ``height`` of its own."""
        width, height = display_size(coded.width, coded.height, self._aspect)
        if width * height > self._most_pixels:
            raise BadInput(
                f"{self._path} has frames of {width}x{height} px, more than {self._most_pixels / 1e6:.0f} megapixels: "
                "scale it down."
            )
        return width, height

    def _sdr(self, frame: Any) -> Any:
        """The frame in BT.709, itself if it is."""
        transfer, primaries = int(frame.color_trc), int(frame.color_primaries)
        if transfer not in (HLG, PQ) and primaries not in (BT_2020, DISPLAY_P3):
            return frame
        if self._mapper is None or self._mapper[0] != (transfer, primaries):
            self._mapper = (transfer, primaries), ToneMapper(transfer, primaries)
            if transfer in (HLG, PQ):
                kind = "HLG" if transfer == HLG else "PQ"
                warnings.warn(
                    f"{self._path} is HDR video ({kind}): its brightness and colours are mapped to SDR.", stacklevel=4
                )
        return self._mapper[1](frame)


def display_size(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Width and height in px with which pixels that are ``aspect`` times as wide as high become squares.

    The shorter-looking side is enlarged, so that no detail goes; it becomes an even number.
    """
    if aspect > 1:
        return round(width * aspect / 2) * 2, height
    if aspect < 1:
        return width, round(height / aspect / 2) * 2
    return width, height


def upright(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """``[H, W, 3]`` turned and mirrored as a display matrix says, to the nearest quarter.

    matrix: (a, b, c, d) of x' = a x + c y, y' = b x + d y (ISO 14496-12, section 8.3.2), x to the right, y down.
    """
    a, b, c, d = matrix
    across, down = a, d
    if abs(b) > abs(a):
        image, across, down = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    values = np.frombuffer(bytes(data)[:36], np.int32).tolist()
    return values[0], values[1], values[3], values[4]


def _pixel_aspect(stream: Any) -> Fraction:
    """Width of a pixel by its height; 1 where the file does not say or says nonsense."""
    aspect = stream.sample_aspect_ratio
    if not aspect or abs(aspect - 1) < _LEAST_SQUEEZE or not Fraction(1, _MOST_SQUEEZE) <= aspect <= _MOST_SQUEEZE:
        return Fraction(1)
    return Fraction(aspect)
