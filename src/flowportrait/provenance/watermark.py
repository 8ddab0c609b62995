"""The invisible watermark: its pattern, putting it into frames, and finding it.

The watermark's pattern: one square tile of band-limited noise, repeated over the picture.

    pattern(x) = tile(x / u mod 256),     u = max(shorter side, 384) / 512      pixels per unit

Its waves are 8 to 24 units long, in proportion to the picture: coarse enough to outlive scaling to half and the
quantiser of a video encoder, fine enough to hide in skin and hair. The tile comes out of a hash, so every version of
every library makes the same one.

Put the watermark into frames.

    frame'(x) = frame(x) + strength(x) · pattern(x),      strength = FLAT + GAIN · local contrast, at most STRONGEST

Brightness alone is changed, by one step of 255 on plain walls and up to three in hair, where the eye does not find it.
The pattern stands still while the face moves, so that a detector can sum over a clip, and an encoder keeps it as it
keeps the background.

Find the watermark in a video, wherever it was scaled, cropped, padded or mirrored to.

    residual = Σ over frames of ( grey − its blur ) / local contrast
    score    = max over zoom z, shift d, mirrored or not, of   Σ_k  F_k / |F_k| · conj(tile_k) · e^(2πi·k·d) / √bins

``F`` is the spectrum of the residual brought to zoom ``z`` and folded onto one tile. Only its phases count, so in a
video without the mark the score of one place is a standard normal number whatever the picture shows, and the chance
of a false alarm follows from how many places are looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import cv2
import numpy as np
from scipy.stats import norm

from flowportrait.media.video import in_order

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


FLAT, GAIN, STRONGEST = 0.8, 0.06, 1.5
SMALL_GAIN = 1.3
"""Times the strength at most, in pictures under 512 px."""
_STEPS = 32
"""Fixed-point steps per brightness level."""
_DETAIL = 9
"""Width in units of what counts as local."""


class Watermark:
    """Marks frames of one size. Eight-bit arithmetic throughout: half a millisecond for 512 × 512."""

    def __init__(self, height: int, width: int) -> None:
        wave = (pattern(height, width).clip(-2, 2) * _STEPS).round()
        # Small pictures hold fewer waves of it, so each has to count for more.
        self._curve = _curve(float(np.clip(UNITS / min(height, width), 1, SMALL_GAIN)))
        # Brighter and darker apart: saturating eight-bit sums are several times faster than signed ones.
        self._brighter, self._darker = (part.clip(0).astype(np.uint8) for part in (wave, -wave))
        self._reach = max(3, round(_DETAIL * unit(height, width) / 2) | 1)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """A marked copy of ``frame`` ``[H, W, 3]`` uint8 RGB; of ``[H, W, 4]`` the alpha stays as it is."""
        if frame.shape[2] == 4:
            return np.dstack([self(np.ascontiguousarray(frame[..., :3])), frame[..., 3]])
        strength = self._strength(frame)
        for change, wave in ((cv2.add, self._brighter), (cv2.subtract, self._darker)):
            step = cv2.multiply(wave, strength, scale=1 / _STEPS**2)
            frame = change(frame, cv2.merge([step, step, step]))
        return frame

    def _strength(self, frame: np.ndarray) -> np.ndarray:
        """How strong the mark may be at each pixel ``[H, W]`` uint8, in steps, measured at half the size."""
        height, width = frame.shape[:2]
        small = cv2.resize(frame, ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA)
        grey, reach = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), (self._reach, self._reach)
        contrast = cv2.blur(cv2.absdiff(grey, cv2.blur(grey, reach)), reach)
        strength = cv2.LUT(contrast, self._curve)
        return cv2.resize(strength, (width, height), interpolation=cv2.INTER_LINEAR)


def _curve(gain: float) -> np.ndarray:
    """Strength in steps for every local contrast ``[256]`` uint8."""
    return (gain * (FLAT + GAIN * np.arange(256)).clip(max=STRONGEST) * _STEPS).round().astype(np.uint8)


def marked(frames: Iterable[np.ndarray], workers: int = 1) -> Iterator[np.ndarray]:
    """Every frame with the watermark in it; with more than one worker, up to as many frames late."""

    @lru_cache(maxsize=1)
    def mark(height: int, width: int) -> Watermark:
        return Watermark(height, width)

    return in_order(lambda frame: mark(*frame.shape[:2])(frame), frames, workers, workers)


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
