"""Find the watermark in a video, wherever it was scaled, cropped, padded or mirrored to.

    residual = Σ over frames of ( grey − its blur ) / local contrast
    score    = max over zoom z, shift d, mirrored or not, of   Σ_k  F_k / |F_k| · conj(tile_k) · e^(2πi·k·d) / √bins

``F`` is the spectrum of the residual brought to zoom ``z`` and folded onto one tile. Only its phases count, so in a
video without the mark the score of one place is a standard normal number whatever the picture shows, and the chance
of a false alarm follows from how many places are looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np
from scipy.stats import norm

from flowportrait.provenance.pattern import TILE, UNITS, band_size, in_band, tile_phases

FALSE_ALARM = 1e-6
"""Chance that a video without the mark is said to carry it."""
ZOOMS = np.geomspace(0.7, 2.2, 192)
"""The shorter side may have been padded to 1 / 0.7 or cropped to 1 / 2.2 of what it was; steps of 0.6 %."""
FRAMES = 60
"""How many frames are looked at."""
_SOFT, _WIDE, _LOCAL, _FLOOR = 0.8, 5.0, 15, 1.5
_FADE = 16


@dataclass(frozen=True)
class Finding:
    """score in standard deviations; threshold it has to exceed; zoom of the pattern, 1 if the picture was only
    scaled; mirrored or not."""

    score: float
    threshold: float
    zoom: float
    mirrored: bool

    @property
    def found(self) -> bool:
        return self.score > self.threshold


def find_watermark(frames: Iterable[np.ndarray]) -> Finding:
    """Look for the mark in frames ``[H, W, 3]`` uint8 RGB of one clip, of which the first 60 count.

    Where the picture is as it was written, scaled or not, is tried first and needs no more than a fifth of a second;
    then every zoom and shift, in about two.

    Raises:
        ValueError: no frame.
    """
    seen = residual(frames)
    plain = best([_as_written(seen, mirrored) for mirrored in (False, True)])
    return plain if plain.found else best([finding for zoom in ZOOMS for finding in _anywhere(seen, float(zoom))])


def best(findings: list[Finding]) -> Finding:
    """The one with the highest score."""
    return max(findings, key=lambda finding: finding.score)


def residual(frames: Iterable[np.ndarray]) -> np.ndarray:
    """What is left of a clip ``[H', W']`` float32, shorter side 512, when everything smooth is taken off."""
    total: np.ndarray | None = None
    for frame in islice(frames, FRAMES):
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        scale = UNITS / min(grey.shape)
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=way).astype(np.float32)
        band = cv2.GaussianBlur(grey, (0, 0), _SOFT) - cv2.GaussianBlur(grey, (0, 0), _WIDE)
        # Strong edges would drown the pattern; divided by their own contrast they weigh no more than plain skin.
        band /= cv2.blur(np.abs(band), (_LOCAL, _LOCAL)) + _FLOOR
        total = band if total is None or total.shape != band.shape else total + band
    if total is None:
        raise ValueError("a watermark is looked for in at least one frame")
    return total


def _as_written(seen: np.ndarray, mirrored: bool) -> Finding:
    """The score where an uncropped picture has its mark."""
    spectrum = np.fft.rfft2(fold(seen[:, ::-1] if mirrored else seen))
    return Finding(float(_surface(spectrum)[0, 0]), _threshold(2), 1.0, mirrored)


def _anywhere(seen: np.ndarray, zoom: float) -> list[Finding]:
    """The best score of any shift at one zoom, as it is and mirrored."""
    way = cv2.INTER_AREA if zoom > 1 else cv2.INTER_LINEAR
    spectrum = np.fft.rfft2(fold(cv2.resize(seen, None, fx=1 / zoom, fy=1 / zoom, interpolation=way)))
    # A mirrored picture has the spectrum F(ky, −kx), which for real pictures is conj F(−ky, kx).
    flipped = np.conj(np.roll(spectrum[::-1], 1, axis=0))
    threshold = _threshold(2 * len(ZOOMS) * TILE * TILE)
    return [
        Finding(float(_surface(given).max()), threshold, zoom, mirrored)
        for given, mirrored in ((spectrum, False), (flipped, True))
    ]


def _surface(spectrum: np.ndarray) -> np.ndarray:
    """Scores ``[256, 256]`` of every shift of a folded picture with this spectrum ``[256, 129]``."""
    product = np.where(in_band(), spectrum / (np.abs(spectrum) + 1e-9), 0) * np.conj(tile_phases())
    return np.fft.irfft2(product, (TILE, TILE)) * (TILE * TILE / np.sqrt(band_size()))


def _threshold(places: int) -> float:
    """The score that chance exceeds anywhere in so many places once in two million videos: half of ``FALSE_ALARM``,
    since there are two searches."""
    return float(norm.isf(FALSE_ALARM / 2 / places))


def fold(seen: np.ndarray) -> np.ndarray:
    """A picture ``[H, W]`` laid over one tile ``[256, 256]``, its border faded out."""
    height, width = seen.shape
    across, down = (
        np.minimum(1, (0.5 + np.minimum(np.arange(side), np.arange(side)[::-1])) / _FADE) for side in (width, height)
    )
    rows, columns = -(-height // TILE), -(-width // TILE)
    sheet = np.zeros((rows * TILE, columns * TILE), np.float32)
    sheet[:height, :width] = seen * down[:, None] * across[None]
    return sheet.reshape(rows, TILE, columns, TILE).sum((0, 2))
