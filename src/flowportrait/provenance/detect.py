"""Find the watermark in a video, wherever it was scaled, cropped, padded or mirrored to.

    residual = Σ over frames of ( grey − its blur ) / local contrast
    score    = max over zoom z, shift d, mirrored or not, of   Σ_k  F_k / |F_k| · conj(tile_k) · e^(2πi·k·d) / √bins

``F`` is the spectrum of the residual brought to zoom ``z`` and folded onto one tile. Only its phases count, so in a
video without the mark the score of one place is a standard normal number whatever the picture shows, and the chance
of a false alarm follows from how many places are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np
from scipy.stats import norm

from flowportrait.provenance.pattern import SMALLEST, TILE, UNITS, band_size, in_band, tile_phases

FALSE_ALARM = 1e-6
"""Chance that a video without the mark is said to carry it."""
ZOOMS = np.geomspace(0.7, 3.0, 244)
"""The shorter side may have been padded to 1 / 0.7 or cropped to a third of what it was; steps of 0.6 %."""
FRAMES = 60
"""How many frames are looked at."""
_SOFT, _WIDE, _LOCAL, _FLOOR = 0.8, 5.0, 15, 1.5
_FADE = 16


@dataclass(frozen=True)
class Finding:
    """score in standard deviations; threshold it has to exceed; zoom of the pattern, 1 in pictures of 384 px and more
    that were only scaled; mirrored or not; moved: found where only a cropped or padded picture has it."""

    score: float
    threshold: float
    zoom: float
    mirrored: bool
    moved: bool = False

    @property
    def found(self) -> bool:
        return self.score > self.threshold


def find_watermark(frames: Iterable[np.ndarray]) -> Finding:
    """Look for the mark in frames ``[H, W, 3]`` uint8 RGB of one clip, of which the first 60 count.

    Three searches, each where the one before found nothing: as it was written, which takes a fifth of a second; scaled
    from another small size; and every zoom and shift, about two seconds.

    Raises:
        ValueError: no frame.
    """
    seen, side = residual(frames)
    # A picture of under 384 px was written so, with coarser waves than its size asks for, or larger and then scaled.
    largest = max(1.0, SMALLEST / side)
    as_written = sorted({1.0, largest})
    between = [float(zoom) for zoom in ZOOMS if 1 < zoom < largest]
    searches: tuple[Callable[[], list[Finding]], ...] = (
        lambda: _scaled(seen, as_written, reach=0),
        lambda: _scaled(seen, between, reach=1),
        lambda: [finding for zoom in ZOOMS for finding in _anywhere(seen, float(zoom))],
    )
    tried = []
    for search in searches:
        tried += search()
        if best(tried).found:
            break
    return best(tried)


def best(findings: list[Finding]) -> Finding:
    """The one with the largest margin over its threshold."""
    return max(findings, key=lambda finding: finding.score - finding.threshold)


def residual(frames: Iterable[np.ndarray]) -> tuple[np.ndarray, int]:
    """What is left of a clip ``[H', W']`` float32, shorter side 512, when everything smooth is taken off; and how many
    pixels the shorter side had."""
    total: np.ndarray | None = None
    side = 0
    for frame in islice(frames, FRAMES):
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        side = min(grey.shape)
        scale = UNITS / side
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=way).astype(np.float32)
        band = cv2.GaussianBlur(grey, (0, 0), _SOFT) - cv2.GaussianBlur(grey, (0, 0), _WIDE)
        # Strong edges would drown the pattern; divided by their own contrast they weigh no more than plain skin.
        band /= cv2.blur(np.abs(band), (_LOCAL, _LOCAL)) + _FLOOR
        total = band if total is None or total.shape != band.shape else total + band
    if total is None:
        raise ValueError("a watermark is looked for in at least one frame")
    return total, side


def _scaled(seen: np.ndarray, zooms: list[float], reach: int) -> list[Finding]:
    """The scores at these zooms where an uncropped picture has its mark, give or take ``reach`` pixels."""
    width = 2 * reach + 1
    threshold = _threshold(2 * max(1, len(zooms)) * width**2)
    findings = []
    for zoom in zooms:
        for mirrored in (False, True):
            surface = _surface(np.fft.rfft2(fold(_resized(seen[:, ::-1] if mirrored else seen, zoom))))
            near = np.roll(surface, (reach, reach), (0, 1))[:width, :width]
            findings.append(Finding(float(near.max()), threshold, zoom, mirrored))
    return findings


def _resized(seen: np.ndarray, zoom: float) -> np.ndarray:
    if zoom == 1.0:
        return seen
    way = cv2.INTER_AREA if zoom > 1 else cv2.INTER_LINEAR
    return cv2.resize(seen, None, fx=1 / zoom, fy=1 / zoom, interpolation=way)


def _anywhere(seen: np.ndarray, zoom: float) -> list[Finding]:
    """The best score of any shift at one zoom, as it is and mirrored."""
    spectrum = np.fft.rfft2(fold(_resized(seen, zoom)))
    # A mirrored picture has the spectrum F(ky, −kx), which for real pictures is conj F(−ky, kx).
    flipped = np.conj(np.roll(spectrum[::-1], 1, axis=0))
    threshold = _threshold(2 * len(ZOOMS) * TILE * TILE)
    return [
        Finding(float(_surface(given).max()), threshold, zoom, mirrored, moved=True)
        for given, mirrored in ((spectrum, False), (flipped, True))
    ]


def _surface(spectrum: np.ndarray) -> np.ndarray:
    """Scores ``[256, 256]`` of every shift of a folded picture with this spectrum ``[256, 129]``."""
    product = np.where(in_band(), spectrum / (np.abs(spectrum) + 1e-9), 0) * np.conj(tile_phases())
    return np.fft.irfft2(product, (TILE, TILE)) * (TILE * TILE / np.sqrt(band_size()))


def _threshold(places: int) -> float:
    """The score that chance exceeds anywhere in so many places once in three million videos: a third of
    ``FALSE_ALARM``, since there are three searches."""
    return float(norm.isf(FALSE_ALARM / 3 / places))


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
