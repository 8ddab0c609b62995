"""Rewards on a small rendering: does the picture hold together in itself and in time.

Both look at a few frame pairs, so a whole batch is scored in a second or two. Both are measured against real
motion under the same rendering (mean μ, deviation d); without that a still face would be the best one.

    perceptual = − huber( (similarity − μ) / d )          temporal = − softplus( (ln residual − μ) / d )
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from flowportrait.reward.interface import RewardBatch, Score, all_valid

PAIRS = 2
_SSIM_WINDOW = 7


def pair_indices(frames: int) -> tuple[int, ...]:
    """Consecutive frame pairs spread over a clip: (i, i+1, j, j+1, …)."""
    starts = np.linspace(frames * 0.1, frames - 2, PAIRS).astype(int)
    return tuple(int(start) + step for start in starts for step in (0, 1))


@dataclass(frozen=True)
class Perceptual:
    """Structural similarity of neighbouring frames and of every frame to the clip's median picture: a distorted,
    tearing or pulsating face is less alike than real ones are, a frozen one more."""

    mean: float
    std: float
    name: str = "perceptual"
    needs: frozenset[str] = frozenset({"frames"})

    def __call__(self, batch: RewardBatch) -> Score:
        z = (self.measure(batch) - self.mean) / self.std
        return all_valid(-F.huber_loss(z, torch.zeros_like(z), reduction="none"))

    @staticmethod
    def measure(batch: RewardBatch) -> torch.Tensor:
        """Similarity ``[B]`` in [0, 1]."""
        frames = batch.frames(pair_indices(batch.motion.shape[1]))
        middle = frames.median(1, keepdim=True).values.expand_as(frames)
        neighbours = structural_similarity(frames[:, 0::2], frames[:, 1::2]).mean(1)
        return 0.5 * neighbours + 0.5 * structural_similarity(frames, middle).mean(1)


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


@dataclass(frozen=True)
class Temporal:
    """Temporal consistency: what is left between two frames once optical flow (DIS) has explained the motion;
    less than real motion leaves is hardly worth more."""

    mean: float
    std: float
    name: str = "temporal"
    needs: frozenset[str] = frozenset({"frames"})

    def __call__(self, batch: RewardBatch) -> Score:
        return all_valid(-F.softplus((self.measure(batch) - self.mean) / self.std))

    @staticmethod
    def measure(batch: RewardBatch) -> torch.Tensor:
        """ln of the mean absolute residual ``[B]``, as a share of the grey range."""
        frames = batch.frames(pair_indices(batch.motion.shape[1]))
        grey = (frames.mean(2) * 255).byte().numpy()
        flow_net = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        height, width = grey.shape[-2:]
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        residual = torch.zeros(len(grey))
        for sample, clip in enumerate(grey):
            for now, later in zip(clip[0::2], clip[1::2], strict=True):
                flow = flow_net.calc(later, now, None)
                there = (x + flow[..., 0], y + flow[..., 1])
                carried = cv2.remap(now, *there, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                residual[sample] += float(np.abs(carried.astype(np.float32) - later).mean()) / 255 / PAIRS
        return (residual + 1e-4).log()
