"""The network that retouches a warped lower face: a small U-Net over the mouth window.

    out(x) = base(x + flow(x)) + skin · residual(x)

base is what the warp and the mouth model drew. The flow mends where lips and folds are and keeps the photo's own
detail; the residual, kept soft, brings the light of an open mouth. Colours go in and out relative to the skin, so a
painting or a grey photo is retouched in its own palette. Untrained, the network changes nothing.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowportrait.codec.mouth_window import HEIGHT, WIDTH

_WIDTHS = (32, 64, 96)
_INPUTS = 13
_LARGEST_FLOW = 6.0
"""Pixels of the window the flow can reach."""

_FADE = 10
"""Pixels over which the network's say fades towards the window's border."""

_SOFTNESS, _REACH = 2.0, 5
"""Standard deviation and reach in pixels of the blur over the residual: free to paint edges, a network this small
paints the mean of all the teeth it has seen, which is none."""

_DARKEST = 0.06


class Windows(NamedTuple):
    """A batch of windows, colours in [0, 1]: base and source ``[B, 3, H, W]`` (source: the portrait's own window),
    skin ``[B, 3]``, shares inner, outer and source_inner ``[B, 1, H, W]``, place ``[B, 2, 3]``, drop ``[B, 2]``
    (jaw, opening)."""

    base: Tensor
    source: Tensor
    skin: Tensor
    inner: Tensor
    outer: Tensor
    source_inner: Tensor
    place: Tensor
    drop: Tensor


class Block(nn.Module):
    """Two convolutions around which the input passes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to the same shape."""
        return x + self.second(F.relu(self.first(F.relu(x))))


def _fade() -> Tensor:
    """``[H, W]``: nothing changes at the window's border."""
    ramps = []
    for size in (HEIGHT, WIDTH):
        place = torch.arange(size).float()
        ramp = (torch.minimum(place, size - 1 - place) / _FADE).clamp(max=1)
        ramps.append(ramp * ramp * (3 - 2 * ramp))
    return ramps[0][:, None] * ramps[1]


class RetouchNet(nn.Module):
    """``flow [B, 2, H, W]`` in window pixels and ``residual [B, 3, H, W]`` in skin colours for ``Windows``."""

    fade: Tensor
    taps: Tensor
    grid: Tensor

    def __init__(self, widths: tuple[int, ...] = _WIDTHS) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4 * _INPUTS, widths[0], 3, padding=1)
        self.encoders = nn.ModuleList(nn.Sequential(*[Block(w) for _ in range(1 + (w > widths[0]))]) for w in widths)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.decoders = nn.ModuleList(Block(a) for a, _ in pairwise(widths))
        self.head = nn.Conv2d(widths[0], 4 * 5, 3, padding=1)
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.zero_()
        ys, xs = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
        self.register_buffer("fade", _fade(), persistent=False)
        taps = torch.exp(-0.5 * (torch.arange(-_REACH, _REACH + 1) / _SOFTNESS) ** 2)
        self.register_buffer("taps", taps / taps.sum(), persistent=False)
        self.register_buffer("grid", torch.stack([xs, ys, torch.ones_like(xs)]).float(), persistent=False)

    def inputs(self, windows: Windows) -> Tensor:
        """Planes ``[B, 13, H, W]``: two pictures relative to the skin, three shares, u, s, j, opening."""
        skin = windows.skin.clamp_min(_DARKEST)[..., None, None]
        place = torch.einsum("bij,jhw->bihw", windows.place, self.grid)
        drop = windows.drop[..., None, None].expand(-1, -1, *place.shape[2:])
        jaw = place[:, 1:] - drop[:, :1]
        pictures = [(windows.base / skin - 1).clamp(max=2), (windows.source / skin - 1).clamp(max=2)]
        shares = [windows.inner, windows.outer, windows.source_inner]
        return torch.cat([*pictures, *shares, 2 * place[:, :1], 4 * place[:, 1:], 4 * jaw, 4 * drop[:, 1:]], 1)

    def forward(self, windows: Windows) -> tuple[Tensor, Tensor]:
        """Flow and residual."""
        x = F.pixel_unshuffle(self.inputs(windows), 2).contiguous(memory_format=torch.channels_last)
        x = self.stem(x)
        skips = []
        for level, encoder in enumerate(self.encoders):
            x = encoder(x)
            if level < len(self.downs):
                skips.append(x)
                x = self.downs[level](x)
        for level in reversed(range(len(self.downs))):
            x = F.interpolate(self.ups[level](x), scale_factor=2.0) + skips[level]
            x = self.decoders[level](x)
        out = F.pixel_shuffle(self.head(F.relu(x)), 2) * self.fade
        return _LARGEST_FLOW * torch.tanh(out[:, :2] / _LARGEST_FLOW), self._softened(out[:, 2:])

    def _softened(self, residual: Tensor) -> Tensor:
        """Gaussian blur: light and colour pass, edges stay what the warp and the mouth model drew."""
        taps = self.taps.expand(3, 1, 1, -1)
        across = F.conv2d(F.pad(residual, (_REACH, _REACH, 0, 0)), taps, groups=3)
        return F.conv2d(F.pad(across, (0, 0, _REACH, _REACH)), taps.transpose(2, 3), groups=3)

    def retouched(self, windows: Windows) -> tuple[Tensor, Tensor]:
        """The retouched windows ``[B, 3, H, W]`` and the flow, differentiably."""
        flow, residual = self(windows)
        place = (self.grid[:2] + flow).permute(0, 2, 3, 1)
        last = torch.tensor([WIDTH - 1, HEIGHT - 1], dtype=place.dtype)
        moved = F.grid_sample(windows.base, 2 * place / last - 1, align_corners=True, padding_mode="border")
        return moved + windows.skin.clamp_min(_DARKEST)[..., None, None] * residual, flow
