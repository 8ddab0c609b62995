"""A critic that tells true mouths from retouched ones, so that teeth are drawn sharp where the mean would be a blur.

Patches of the mouth, relative to the skin, with the shares of opening and lips beside them; least-squares targets
(Mao et al., 1611.04076), and the critic's own features as one more distance (feature matching, 1711.11585).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowportrait.codec.retouch_net import Windows

_BOX = (..., slice(8, 64), slice(12, 84))
_WIDTHS = (32, 64, 96)


class Critic(nn.Module):
    """``[B, 3, H, W]`` windows to maps: features of three stages, and the verdict."""

    def __init__(self) -> None:
        super().__init__()
        before = 5
        self.stages = nn.ModuleList()
        for width in _WIDTHS:
            self.stages.append(nn.utils.parametrizations.spectral_norm(nn.Conv2d(before, width, 4, 2, 1)))
            before = width
        self.verdict = nn.Conv2d(before, 1, 3, padding=1)

    def forward(self, image: Tensor, windows: Windows) -> list[Tensor]:
        """Features, then the verdict last."""
        relative = (image / windows.skin.clamp_min(0.06)[..., None, None] - 1).clamp(max=2)
        x = torch.cat([relative, windows.inner, windows.outer], 1)[_BOX]
        maps = []
        for stage in self.stages:
            x = F.leaky_relu(stage(x), 0.2)
            maps.append(x)
        return [*maps, self.verdict(x)]


def critic_loss(critic: Critic, drawn: Tensor, truth: Tensor, windows: Windows) -> Tensor:
    """What the critic minimises: one for true windows, zero for drawn ones."""
    return (critic(truth, windows)[-1] - 1).square().mean() + critic(drawn.detach(), windows)[-1].square().mean()


def deception(critic: Critic, drawn: Tensor, truth: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """What the retoucher minimises: being found out, and the distance between the critic's features."""
    *mine, verdict = critic(drawn, windows)
    with torch.no_grad():
        *true, _ = critic(truth, windows)
    distance = torch.stack([(a - b).abs().mean() for a, b in zip(mine, true, strict=True)]).sum()
    return (verdict - 1).square().mean(), distance
