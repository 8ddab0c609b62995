"""Teeth in a picture: the bright, unsaturated share of what lies between the lips.

    bright       luma over that of the skin around the mouth   > BRIGHT
    unsaturated  (max − min) / max of the three channels       < UNSATURATED
    present      share of the interior that is both            > PRESENT

The thresholds are those that ``tools.fit_teeth_threshold`` finds on training photos with masks; drawn pictures had no
part in them. Grey is what is half as saturated as that and neither bright nor dark.
"""

from __future__ import annotations

import numpy as np

from flowportrait.media.colour import LUMA_601

BRIGHT, UNSATURATED, PRESENT = 0.86, 0.38, 0.15
"""Found on the 364 training photos of CelebAMask-HQ whose mask shows the inside of the mouth:
``python -m tools.fit_teeth_threshold --data FOOTAGE``."""

DARK = 0.25
"""Luma over that of the skin below which a pixel is cavity, whatever its saturation."""


def luma_and_saturation(pixels: np.ndarray, skin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the luma ``[N]`` of pixels ``[N, 3]`` relative to skin ``[3]``, and their saturation ``[N]``."""
    values = pixels.astype(np.float64)
    high = values.max(-1)
    return values @ LUMA_601 / (skin @ LUMA_601), (high - values.min(-1)) / np.maximum(high, 1)


def teeth_share(pixels: np.ndarray, skin: np.ndarray) -> float:
    """Return the share of interior pixels ``[N, 3]`` that are teeth; zero of none."""
    luma, saturation = luma_and_saturation(pixels, skin)
    return float(np.mean((luma > BRIGHT) & (saturation < UNSATURATED))) if len(pixels) else 0.0


def grey_share(pixels: np.ndarray, skin: np.ndarray) -> float:
    """Return the share of interior pixels ``[N, 3]`` that are unsaturated, but neither bright nor dark."""
    luma, saturation = luma_and_saturation(pixels, skin)
    grey = (luma > DARK) & (luma < 0.75 * BRIGHT) & (saturation < UNSATURATED / 2)
    return float(np.mean(grey)) if len(pixels) else 0.0


def balanced_accuracy(true: np.ndarray, found: np.ndarray) -> float:
    """Return the mean of the shares of true and of false ``[N]`` bool that were found to be so; NaN if one is empty."""
    if true.all() or not true.any():
        return float("nan")
    return float((found[true].mean() + (~found[~true]).mean()) / 2)
