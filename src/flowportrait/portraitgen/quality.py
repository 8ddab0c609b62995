"""General quality of a picture, as far as it can be measured: detail, contrast, colourfulness, brightness.

    detail            −softness of mouth and eyes                contrast      standard deviation of L*
    colourfulness     √(σ_rg² + σ_yb²) + 0.3 √(μ_rg² + μ_yb²)    brightness    mean L*

Colourfulness is that of Hasler and Süsstrunk (2003).
"""

from __future__ import annotations

import cv2
import numpy as np

from flowportrait.portraitgen.detectors import softness
from flowportrait.portraitgen.look import Look


def figures(look: Look) -> dict[str, float | None]:
    """The four numbers of a framed face (of the whole picture where there is none)."""
    picture = look.picture if look.face is None else look.face
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    soft = softness(look)
    red, green, blue = picture.astype(np.float64).transpose(2, 0, 1)
    across, down = red - green, (red + green) / 2 - blue
    colour = np.hypot(across.std(), down.std()) + 0.3 * np.hypot(across.mean(), down.mean())
    return {
        "detail": None if soft is None else -soft,
        "contrast": float(lab[..., 0].std()),
        "colourfulness": float(np.log(colour + 1.0)),
        "brightness": float(lab[..., 0].mean()),
    }
