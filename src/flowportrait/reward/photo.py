"""A portrait as large as the frames it is compared with."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from flowportrait.media.portrait import Portrait


def shrunk(portrait: Portrait, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The portrait's crop ``[3, side, side]`` in [0, 1] and its landmarks ``[478, 2]`` there."""
    picture = cv2.resize(portrait.crop, (side, side), interpolation=cv2.INTER_AREA)
    points = scaled(portrait.landmarks[:, :2], side / portrait.crop.shape[0])
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 255, torch.from_numpy(points).float()


def scaled(points: np.ndarray, scale: float) -> np.ndarray:
    """Points in pixels of a picture ``scale`` times as large; pixel centres, not corners, carry integers."""
    return points * scale + 0.5 * (scale - 1)
