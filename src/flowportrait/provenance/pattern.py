"""The watermark's pattern: one square tile of band-limited noise, repeated over the picture.

    pattern(x) = tile(x / u mod 256),     u = max(shorter side, 384) / 512      pixels per unit

Its waves are 8 to 24 units long, in proportion to the picture: coarse enough to outlive scaling to half and the
quantiser of a video encoder, fine enough to hide in skin and hair. The tile comes out of a hash, so every version of
every library makes the same one.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import cv2
import numpy as np

TILE = 256
UNITS = 512
"""Shorter side of a picture in units."""
SMALLEST = 384
"""Pictures with a shorter side than this get the pattern of this size: finer waves would not outlive an encoder."""
FINEST, COARSEST = 8.0, 24.0
"""Shortest and longest wavelength in units."""
KEY = b"flowportrait watermark 1"


def unit(height: int, width: int) -> float:
    """Pixels per pattern unit in a picture of this size."""
    return max(min(height, width), SMALLEST) / UNITS


@lru_cache(maxsize=1)
def in_band() -> np.ndarray:
    """Which bins ``[256, 129]`` of a tile's real FFT belong to the pattern."""
    wave = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None])
    return (wave >= 1 / COARSEST) & (wave <= 1 / FINEST)


def band_size() -> int:
    """Bins of the full FFT in the band: those of the real one, and their mirror images."""
    band = in_band()
    return int(2 * band.sum() - band[:, 0].sum() - band[:, -1].sum())


@lru_cache(maxsize=1)
def tile_phases() -> np.ndarray:
    """Spectrum of the tile ``[256, 129]`` complex64: modulus one inside the band, zero outside."""
    noise = np.frombuffer(hashlib.shake_256(KEY).digest(TILE * TILE * 2), "<u2").reshape(TILE, TILE)
    spectrum = np.fft.rfft2(noise.astype(np.float64) / 65535 - 0.5)
    return np.where(in_band(), spectrum / np.abs(spectrum), 0).astype(np.complex64)


@lru_cache(maxsize=1)
def tile() -> np.ndarray:
    """The tile ``[256, 256]`` float32, mean zero, variance one."""
    wave = np.fft.irfft2(tile_phases(), (TILE, TILE))
    return (wave / wave.std()).astype(np.float32)


@lru_cache(maxsize=4)
def pattern(height: int, width: int) -> np.ndarray:
    """The pattern over a picture ``[H, W]`` float32, variance about one."""
    scale = unit(height, width)
    rows, columns = (int(np.ceil(side / scale / TILE)) + 1 for side in (height, width))
    sheet = np.tile(tile(), (rows, columns))
    matrix = np.array([[scale, 0, 0.5 * scale - 0.5], [0, scale, 0.5 * scale - 0.5]])
    return cv2.warpAffine(sheet, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP)
