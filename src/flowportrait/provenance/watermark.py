"""The invisible watermark: its pattern, adding it to frames, and detecting it.

    pattern(x) = tile(x / u mod 256),     u = max(shorter side, 384) / 512      pixels per unit
    frame'(x)  = frame(x) + strength(x) · pattern(x)
    score      = largest phase correlation of the frames' residual with the tile, over zoom, shift and mirroring

The pattern is one square tile of band-limited noise, repeated over the picture. Its waves are 8 to 24 units long, in
proportion to the picture: coarse enough to outlive scaling to half and the quantiser of a video encoder, fine enough to
hide in skin and hair. The tile is derived from a hash, so every version of every library makes the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import cv2
import numpy as np

from flowportrait.media.video import map_in_order

# --- The pattern ------------------------------------------------------------------------

TILE_SIDE = 256
"""Side of the tile in units."""
PICTURE_UNITS = 512
"""Shorter side of a picture in units."""
MIN_PATTERN_SIDE = 384
"""Pictures with a shorter side than this get the pattern of this size: finer waves would not outlive an encoder."""
MIN_WAVELENGTH, MAX_WAVELENGTH = 8.0, 24.0
"""Shortest and longest wavelength in units."""
WATERMARK_KEY = b"flowportrait watermark 1"
"""Seed of the tile's noise."""


def pixels_per_unit(height: int, width: int) -> float:
    """Return the pixels per pattern unit in a picture of this size."""
    return max(min(height, width), MIN_PATTERN_SIDE) / PICTURE_UNITS


@lru_cache(maxsize=1)
def band_mask() -> np.ndarray:
    """Return which bins ``[256, 129]`` of a tile's real FFT belong to the pattern."""
    wave = np.hypot(np.fft.fftfreq(TILE_SIDE)[:, None], np.fft.rfftfreq(TILE_SIDE)[None])
    return (wave >= 1 / MAX_WAVELENGTH) & (wave <= 1 / MIN_WAVELENGTH)


def band_size() -> int:
    """Return the number of bins of the full FFT in the band: those of the real one, and their mirror images."""
    band = band_mask()
    return int(2 * band.sum() - band[:, 0].sum() - band[:, -1].sum())


@lru_cache(maxsize=1)
def tile_phases() -> np.ndarray:
    """Return the spectrum of the tile ``[256, 129]`` complex64: modulus one inside the band, zero outside."""
    noise = np.frombuffer(hashlib.shake_256(WATERMARK_KEY).digest(TILE_SIDE * TILE_SIDE * 2), "<u2").reshape(
        TILE_SIDE, TILE_SIDE
    )
    spectrum = np.fft.rfft2(noise.astype(np.float64) / 65535 - 0.5)
    return np.where(band_mask(), spectrum / np.abs(spectrum), 0).astype(np.complex64)


@lru_cache(maxsize=1)
def watermark_tile() -> np.ndarray:
    """Return the tile ``[256, 256]`` float32 with mean zero and variance one."""
    wave = np.fft.irfft2(tile_phases(), (TILE_SIDE, TILE_SIDE))
    return (wave / wave.std()).astype(np.float32)


@lru_cache(maxsize=4)
def watermark_pattern(height: int, width: int) -> np.ndarray:
    """Return the pattern over a picture ``[H, W]`` float32, variance about one."""
    scale = pixels_per_unit(height, width)
    rows, columns = (int(np.ceil(side / scale / TILE_SIDE)) + 1 for side in (height, width))
    sheet = np.tile(watermark_tile(), (rows, columns))
    matrix = np.array([[scale, 0, 0.5 * scale - 0.5], [0, scale, 0.5 * scale - 0.5]])
    return cv2.warpAffine(sheet, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP)


# --- Adding it to frames ----------------------------------------------------------------
#
#     frame'(x) = frame(x) + strength(x) · pattern(x),      strength = FLAT + GAIN · local contrast, at most STRONGEST
#
# Brightness alone is changed, by one step of 255 on plain walls and up to three in hair, where the eye does not see it.
# The pattern stands still while the face moves, so that a detector can sum over a clip, and an encoder keeps it as it
# keeps the background.

BASE_STRENGTH, CONTRAST_GAIN, MAX_STRENGTH = 0.8, 0.06, 1.5
"""Strength of the pattern in brightness levels: on plain areas, per level of local contrast, and at most."""
MAX_SMALL_PICTURE_GAIN = 1.3
"""Largest factor by which the strength is raised in pictures under 512 px."""
_STEPS = 32
"""Fixed-point steps per brightness level."""
_DETAIL = 9
"""Width in units of the window in which contrast is measured."""


class Watermark:
    """A function that adds the watermark to frames of one size.

    Its arithmetic has eight bits throughout: half a millisecond for 512 × 512.
    """

    def __init__(self, height: int, width: int) -> None:
        wave = (watermark_pattern(height, width).clip(-2, 2) * _STEPS).round()
        # Small pictures hold fewer waves of the pattern, so each has to be stronger.
        self._strength_by_contrast = _strength_by_contrast(
            float(np.clip(PICTURE_UNITS / min(height, width), 1, MAX_SMALL_PICTURE_GAIN))
        )
        # Two unsigned parts: saturating eight-bit sums are several times faster than signed ones.
        self._brighter, self._darker = (part.clip(0).astype(np.uint8) for part in (wave, -wave))
        self._window = max(3, round(_DETAIL * pixels_per_unit(height, width) / 2) | 1)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Return a marked copy of ``frame`` ``[H, W, 3]`` uint8 RGB; of ``[H, W, 4]`` the alpha stays as it is."""
        if frame.shape[2] == 4:
            return np.dstack([self(np.ascontiguousarray(frame[..., :3])), frame[..., 3]])
        strength = self._strength(frame)
        for change, wave in ((cv2.add, self._brighter), (cv2.subtract, self._darker)):
            step = cv2.cvtColor(cv2.multiply(wave, strength, scale=1 / _STEPS**2), cv2.COLOR_GRAY2RGB)
            # Into memory that is already there: fresh memory for a picture costs more than the sum.
            frame = change(frame, step, dst=step)
        return frame

    def _strength(self, frame: np.ndarray) -> np.ndarray:
        """Return how strong the mark may be at each pixel ``[H, W]`` uint8, in steps, measured at half the size."""
        height, width = frame.shape[:2]
        small = cv2.resize(frame, ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA)
        grey, reach = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), (self._window, self._window)
        contrast = cv2.blur(cv2.absdiff(grey, cv2.blur(grey, reach)), reach)
        strength = cv2.LUT(contrast, self._strength_by_contrast)
        return cv2.resize(strength, (width, height), interpolation=cv2.INTER_LINEAR)


def _strength_by_contrast(gain: float) -> np.ndarray:
    """Return the strength in steps for every local contrast ``[256]`` uint8."""
    return (
        (gain * (BASE_STRENGTH + CONTRAST_GAIN * np.arange(256)).clip(max=MAX_STRENGTH) * _STEPS)
        .round()
        .astype(np.uint8)
    )


def add_watermark(frames: Iterable[np.ndarray], workers: int = 1) -> Iterator[np.ndarray]:
    """Yield every frame with the watermark in it; with several workers, up to as many frames late."""

    @lru_cache(maxsize=1)
    def mark(height: int, width: int) -> Watermark:
        return Watermark(height, width)

    return map_in_order(lambda frame: mark(*frame.shape[:2])(frame), frames, workers, workers)


# --- Detecting it, in a video that was scaled, cropped, padded or mirrored --------------
#
#     residual = Σ over frames of ( grey − its blur ) / local contrast
#     score    = max over zoom z, shift d, mirrored or not, of   Σ_k  F_k / |F_k| · conj(tile_k) · e^(2πi·k·d) / √bins
#
# ``F`` is the spectrum of the residual brought to zoom ``z`` and folded onto one tile. Only its phases count, so in a
# video without the mark the score of one place is a standard normal number whatever the picture shows, and the chance
# of a false alarm follows from the number of places that are searched.

FALSE_ALARM_RATE = 1e-6
"""Probability that a video without the mark is reported to carry it."""
SEARCHED_ZOOMS = np.geomspace(0.7, 3.0, 244)
"""Zooms that are searched, in steps of 0.6 %.

The shorter side may have been padded to 1 / 0.7 or cropped to a third of what it was.
"""
MAX_FRAMES_READ = 60
"""How many frames of a video are read at most."""
_SOFT, _WIDE, _LOCAL, _FLOOR = 0.8, 5.0, 15, 1.5
_FADE = 16


@dataclass(frozen=True)
class WatermarkMatch:
    """The best match of the watermark in a video.

    Attributes:
        score: in standard deviations.
        threshold: what it has to exceed.
        zoom: of the pattern, 1 in pictures of 384 px and more that were only scaled.
        mirrored: whether the picture is.
        moved: whether the match is where only a cropped or padded picture has it.
    """

    score: float
    threshold: float
    zoom: float
    mirrored: bool
    moved: bool = False

    @property
    def found(self) -> bool:
        """Whether the video carries the watermark."""
        return self.score > self.threshold


def find_watermark(frames: Iterable[np.ndarray]) -> WatermarkMatch:
    """Search for the watermark in frames ``[H, W, 3]`` uint8 RGB of one clip, of which the first 60 count.

    There are three searches, each only where the one before found nothing: for the picture as it was written, which
    takes a fifth of a second; scaled from another small size; and every zoom and shift, about two seconds.

    Raises:
        ValueError: there is no frame.
    """
    picture, side = high_pass_residual(frames)
    # A picture under 384 px was either written at this size, with coarser waves than usual, or scaled down later.
    largest = max(1.0, MIN_PATTERN_SIDE / side)
    as_written = sorted({1.0, largest})
    intermediate = [float(zoom) for zoom in SEARCHED_ZOOMS if 1 < zoom < largest]
    searches: tuple[Callable[[], list[WatermarkMatch]], ...] = (
        lambda: _search_scaled(picture, as_written, reach=0),
        lambda: _search_scaled(picture, intermediate, reach=1),
        lambda: [finding for zoom in SEARCHED_ZOOMS for finding in _search_anywhere(picture, float(zoom))],
    )
    findings = []
    for search in searches:
        findings += search()
        if best_match(findings).found:
            break
    return best_match(findings)


def best_match(findings: list[WatermarkMatch]) -> WatermarkMatch:
    """Return the finding with the largest margin over its threshold."""
    return max(findings, key=lambda finding: finding.score - finding.threshold)


def high_pass_residual(frames: Iterable[np.ndarray]) -> tuple[np.ndarray, int]:
    """Return what is left of a clip when everything smooth is subtracted, and the pixels of its shorter side.

    The residual is ``[H', W']`` float32, its shorter side 512.
    """
    total: np.ndarray | None = None
    side = 0
    for frame in islice(frames, MAX_FRAMES_READ):
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        side = min(grey.shape)
        scale = PICTURE_UNITS / side
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=interpolation).astype(np.float32)
        band = cv2.GaussianBlur(grey, (0, 0), _SOFT) - cv2.GaussianBlur(grey, (0, 0), _WIDE)
        # Strong edges would drown the pattern; divided by their own contrast they weigh no more than plain skin.
        band /= cv2.blur(np.abs(band), (_LOCAL, _LOCAL)) + _FLOOR
        total = band if total is None or total.shape != band.shape else total + band
    if total is None:
        raise ValueError("a watermark is looked for in at least one frame")
    return total, side


def _search_scaled(picture: np.ndarray, zooms: list[float], reach: int) -> list[WatermarkMatch]:
    """Return the scores at these zooms where an uncropped picture has its mark, give or take ``reach`` pixels."""
    width = 2 * reach + 1
    threshold = _threshold(2 * max(1, len(zooms)) * width**2)
    findings = []
    for zoom in zooms:
        for mirrored in (False, True):
            surface = _scores(np.fft.rfft2(fold_onto_tile(_resize(picture[:, ::-1] if mirrored else picture, zoom))))
            scores = np.roll(surface, (reach, reach), (0, 1))[:width, :width]
            findings.append(WatermarkMatch(float(scores.max()), threshold, zoom, mirrored))
    return findings


def _resize(picture: np.ndarray, zoom: float) -> np.ndarray:
    if zoom == 1.0:
        return picture
    interpolation = cv2.INTER_AREA if zoom > 1 else cv2.INTER_LINEAR
    return cv2.resize(picture, None, fx=1 / zoom, fy=1 / zoom, interpolation=interpolation)


def _search_anywhere(picture: np.ndarray, zoom: float) -> list[WatermarkMatch]:
    """Return the best score of any shift at one zoom, of the picture as it is and mirrored."""
    spectrum = np.fft.rfft2(fold_onto_tile(_resize(picture, zoom)))
    # A mirrored picture has the spectrum F(ky, −kx), which for real pictures is conj F(−ky, kx).
    flipped = np.conj(np.roll(spectrum[::-1], 1, axis=0))
    threshold = _threshold(2 * len(SEARCHED_ZOOMS) * TILE_SIDE * TILE_SIDE)
    return [
        WatermarkMatch(float(_scores(candidate).max()), threshold, zoom, mirrored, moved=True)
        for candidate, mirrored in ((spectrum, False), (flipped, True))
    ]


def _scores(spectrum: np.ndarray) -> np.ndarray:
    """Return the scores ``[256, 256]`` of every shift of a folded picture with this spectrum ``[256, 129]``."""
    product = np.where(band_mask(), spectrum / (np.abs(spectrum) + 1e-9), 0) * np.conj(tile_phases())
    return np.fft.irfft2(product, (TILE_SIDE, TILE_SIDE)) * (TILE_SIDE * TILE_SIDE / np.sqrt(band_size()))


def _threshold(places: int) -> float:
    """Return the score that chance exceeds anywhere in so many places once in three million videos.

    That is a third of ``FALSE_ALARM_RATE``, since there are three searches.
    """
    # Imported here: it takes a third of a second, and putting a watermark into frames needs none of it.
    from scipy.stats import norm

    return float(norm.isf(FALSE_ALARM_RATE / 3 / places))


def fold_onto_tile(image: np.ndarray) -> np.ndarray:
    """Return a picture ``[H, W]`` laid over one tile ``[256, 256]``, its border faded out."""
    height, width = image.shape
    across, down = (
        np.minimum(1, (0.5 + np.minimum(np.arange(side), np.arange(side)[::-1])) / _FADE) for side in (width, height)
    )
    rows, columns = -(-height // TILE_SIDE), -(-width // TILE_SIDE)
    sheet = np.zeros((rows * TILE_SIDE, columns * TILE_SIDE), np.float32)
    sheet[:height, :width] = image * down[:, None] * across[None]
    return sheet.reshape(rows, TILE_SIDE, columns, TILE_SIDE).sum((0, 2))
