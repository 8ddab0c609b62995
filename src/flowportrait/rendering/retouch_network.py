"""The retouching network: a small U-Net over the mouth window, in PyTorch and as ONNX.

    window, photo's window, shares, coordinates ──► RetouchNet ──► flow, residual

``RetouchNet`` is the network and ``OnnxRetouchNet`` the same as ONNX, which is how it is run. There are two kinds of
weights, which ``RetouchNet.from_weights`` tells apart by their shapes:

    full      two 3x3 convolutions in a block; the residual is blurred everywhere
    compact   a 5x5 convolution of each channel and two 1x1 convolutions in a block, less than half the time; the
              residual is blurred outside of the opening and sharp inside, where there are teeth to be drawn
"""

from __future__ import annotations

import os
import warnings
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from flowportrait.devices import Device, onnx_providers, read_weights
from flowportrait.rendering.mouth_geometry import WINDOW_HEIGHT, WINDOW_WIDTH, shuffle_pixels, unshuffle_pixels

# --- The network -----------------------------------------------------------------------------------------------------

FULL, COMPACT = (32, 64, 96), (24, 64, 96)
"""Channels at a half, a quarter and an eighth of the window, of the two kinds."""

_INPUTS = 13
"""Input planes; see ``RetouchNet.inputs``."""

_LARGEST_FLOW = 6.0
"""Largest flow in pixels of the window."""

_FADE = 10
"""Pixels over which the change fades to zero at the border of the window."""

_SOFTNESS, _REACH = 2.0, 5
"""Standard deviation and radius in pixels of the blur of the residual: it carries light and colour, while edges remain
those that were drawn."""

DARKEST = 0.06
"""Least colour of the skin that others are divided by."""


class MouthWindows(NamedTuple):
    """A batch of mouth windows; colours are in [0, 1].

    Attributes:
        base: the drawn windows ``[B, 3, H, W]``.
        source: the portrait's own windows ``[B, 3, H, W]``.
        skin: skin colours ``[B, 3]``.
        inner: share of each pixel inside the opening ``[B, 1, H, W]``.
        outer: share of each pixel inside the outer lips ``[B, 1, H, W]``.
        source_inner: share of each pixel inside the portrait's own opening ``[B, 1, H, W]``.
        place: linear map from window pixels to mouth coordinates (u, s) ``[B, 2, 3]``.
        drop: drop of the jaw and height of the opening ``[B, 2]``.
    """

    base: Tensor
    source: Tensor
    skin: Tensor
    inner: Tensor
    outer: Tensor
    source_inner: Tensor
    place: Tensor
    drop: Tensor


class RetouchLimits(NamedTuple):
    """How far the effect of a network reaches.

    Attributes:
        known: opening in eye distances up to which the network has its full effect.
        unknown: opening from which on it has none, as it was trained on few wider mouths.
        photo: share of the residual that is applied to teeth that the photo itself shows.
    """

    known: float
    unknown: float
    photo: float


FULL_LIMITS, COMPACT_LIMITS = RetouchLimits(0.09, 0.17, 0.2), RetouchLimits(0.3, 0.5, 1.0)


class ResidualBlock(nn.Module):
    """A residual block of two convolutions; in the compact kind the first is in two parts, by channel and by place."""

    def __init__(self, width: int, compact: bool = False) -> None:
        super().__init__()
        self.first: nn.Module
        if compact:
            self.first = nn.Sequential(
                nn.Conv2d(width, width, 5, padding=2, groups=width), nn.Conv2d(width, 2 * width, 1)
            )
            self.second = nn.Conv2d(2 * width, width, 1)
        else:
            self.first = nn.Conv2d(width, width, 3, padding=1)
            self.second = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` ``[B, C, h, w]`` plus the convolutions' output."""
        return x + self.second(F.relu(self.first(F.relu(x))))


def _border_fade() -> Tensor:
    """Return the weight of the change ``[H, W]``, zero at the border of the window."""
    ramps = []
    for size in (WINDOW_HEIGHT, WINDOW_WIDTH):
        place = torch.arange(size).float()
        ramp = (torch.minimum(place, size - 1 - place) / _FADE).clamp(max=1)
        ramps.append(ramp * ramp * (3 - 2 * ramp))
    return ramps[0][:, None] * ramps[1]


class RetouchNet(nn.Module):
    """A U-Net that maps ``MouthWindows`` to a flow and a residual.

    The flow ``[B, 2, H, W]`` is in window pixels, the residual ``[B, 3, H, W]`` in skin colours.
    """

    fade: Tensor
    taps: Tensor
    grid: Tensor

    def __init__(self, widths: tuple[int, ...] = FULL, compact: bool = False) -> None:
        super().__init__()
        self.compact = compact
        self.limits = COMPACT_LIMITS if compact else FULL_LIMITS
        self.stem = nn.Conv2d(4 * _INPUTS, widths[0], 3, padding=1)
        self.encoders = nn.ModuleList(
            nn.Sequential(*[ResidualBlock(w, compact) for _ in range(1 + (w > widths[0]))]) for w in widths
        )
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.decoders = nn.ModuleList(ResidualBlock(a, compact) for a, _ in pairwise(widths))
        self.head = nn.Conv2d(widths[0], 4 * 5, 3, padding=1)
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.zero_()
        ys, xs = torch.meshgrid(torch.arange(WINDOW_HEIGHT), torch.arange(WINDOW_WIDTH), indexing="ij")
        self.register_buffer("fade", _border_fade(), persistent=False)
        taps = torch.exp(-0.5 * (torch.arange(-_REACH, _REACH + 1) / _SOFTNESS) ** 2)
        self.register_buffer("taps", taps / taps.sum(), persistent=False)
        self.register_buffer("grid", torch.stack([xs, ys, torch.ones_like(xs)]).float(), persistent=False)

    @classmethod
    def from_weights(cls, weights: dict[str, Tensor]) -> RetouchNet:
        """Return the network that has these weights, of whichever kind."""
        widths = [weights["stem.weight"].shape[0]]
        while (name := f"downs.{len(widths) - 1}.weight") in weights:
            widths.append(weights[name].shape[0])
        network = cls(tuple(widths), compact="encoders.0.0.first.0.weight" in weights)
        network.load_state_dict({name: value.float() for name, value in weights.items()})
        return network

    def inputs(self, windows: MouthWindows) -> Tensor:
        """Return the input planes ``[B, 13, H, W]`` of the network.

        They are two pictures relative to the skin (6), three shares (3), the coordinates u, s and j (3), and the
        opening (1).
        """
        skin = windows.skin.clamp_min(DARKEST)[..., None, None]
        place = torch.einsum("bij,jhw->bihw", windows.place, self.grid)
        drop = windows.drop[..., None, None].expand(-1, -1, *place.shape[2:])
        jaw = place[:, 1:] - drop[:, :1]
        pictures = [(windows.base / skin - 1).clamp(max=2), (windows.source / skin - 1).clamp(max=2)]
        shares = [windows.inner, windows.outer, windows.source_inner]
        return torch.cat([*pictures, *shares, 2 * place[:, :1], 4 * place[:, 1:], 4 * jaw, 4 * drop[:, 1:]], 1)

    def forward(self, windows: MouthWindows) -> tuple[Tensor, Tensor]:
        """Return flow and residual."""
        x = F.pixel_unshuffle(self.inputs(windows), 2).contiguous(memory_format=torch.channels_last)
        out = F.pixel_shuffle(self.body(self.stem(x)), 2) * self.fade
        residual = self._blur(out[:, 2:])
        if self.compact:
            residual = residual + windows.inner * (out[:, 2:] - residual)
        return _LARGEST_FLOW * torch.tanh(out[:, :2] / _LARGEST_FLOW), residual

    def body(self, x: Tensor) -> Tensor:
        """Return flow and residual ``[B, 20, h, w]`` in halved windows, for the response of the first convolution."""
        skips = []
        for level, encoder in enumerate(self.encoders):
            x = encoder(x)
            if level < len(self.downs):
                skips.append(x)
                x = self.downs[level](x)
        for level in reversed(range(len(self.downs))):
            x = F.interpolate(self.ups[level](x), scale_factor=2.0) + skips[level]
            x = self.decoders[level](x)
        result: Tensor = self.head(F.relu(x))
        return result

    def _blur(self, residual: Tensor) -> Tensor:
        """Return the blurred residual."""
        taps = self.taps.expand(3, 1, 1, -1)
        across = F.conv2d(F.pad(residual, (_REACH, _REACH, 0, 0)), taps, groups=3)
        return F.conv2d(F.pad(across, (0, 0, _REACH, _REACH)), taps.transpose(2, 3), groups=3)

    def retouched(self, windows: MouthWindows) -> tuple[Tensor, Tensor]:
        """Return the retouched windows ``[B, 3, H, W]`` and the flow, differentiably."""
        flow, residual = self(windows)
        place = (self.grid[:2] + flow).permute(0, 2, 3, 1)
        last = torch.tensor([WINDOW_WIDTH - 1, WINDOW_HEIGHT - 1], dtype=place.dtype)
        moved = F.grid_sample(windows.base, 2 * place / last - 1, align_corners=True, padding_mode="border")
        return moved + windows.skin.clamp_min(DARKEST)[..., None, None] * residual, flow


# --- The network as ONNX ---------------------------------------------------------------------------------------------
#
# ONNX Runtime runs the same weights in half the time: the window is so small that much of PyTorch's time is spent
# between the convolutions, which the runtime fuses. The first convolution is linear, and only the drawn window and its
# shares differ freely between frames; its response to everything else is put together from responses known before:
#
#     stem(x) = conv(moving planes) + response(portrait) + Σ_k coordinates_k · response_k

_MOVING, _COORDINATES = [0, 1, 2, 6, 7], slice(9, 13)
"""The input planes that differ freely between frames, which are the drawn window and the shares inside the lips; those
that are linear in the map and the drop of ``MouthWindows``."""


class OnnxRetouchNet:
    """``RetouchNet`` from its weights and its core as ONNX, one window at a time; several threads may call it."""

    def __init__(self, weights: Path, core: Path, device: Device | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # frames are drawn in parallel; threads within one would only wait
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(core), options, providers=onnx_providers(device))
        self._network = RetouchNet.from_weights(read_weights(weights)).requires_grad_(False).eval()
        self.limits = self._network.limits
        nothing, one = torch.zeros(8), torch.eye(8)
        self._offset = self._coordinate_response(nothing)
        self._coordinates = np.stack([self._coordinate_response(axis) - self._offset for axis in one])
        self._portraits = WeakTensorKeyDictionary()
        self._taps = self._network.taps.numpy()

    def __call__(self, windows: MouthWindows) -> tuple[Tensor, Tensor]:
        """Return flow and residual; see ``RetouchNet``."""
        skin = windows.skin[0].clamp_min(DARKEST).numpy()
        moving = np.empty((len(_MOVING), WINDOW_HEIGHT, WINDOW_WIDTH), np.float32)
        np.divide(windows.base[0].numpy(), skin[:, None, None], out=moving[:3])
        moving[:3] -= 1
        np.minimum(moving[:3], 2, out=moving[:3])
        moving[3], moving[4] = windows.inner[0, 0].numpy(), windows.outer[0, 0].numpy()
        place = np.concatenate([windows.place.numpy().ravel(), windows.drop.numpy().ravel()])
        stem = place @ self._coordinates
        stem += self._portrait_response(windows)
        response = stem.reshape(1, -1, WINDOW_HEIGHT // 2, WINDOW_WIDTH // 2)
        feed = {"moving": unshuffle_pixels(moving)[None], "stem": response}
        flow, residual = (shuffle_pixels(part[0]) for part in self._session.run(None, feed))
        for plane in residual:
            # As in ``RetouchNet``, the window is surrounded by no change.
            sharp = moving[3] * plane if self._network.compact else None
            cv2.sepFilter2D(plane, -1, self._taps, self._taps, plane, borderType=cv2.BORDER_CONSTANT)
            if sharp is not None:
                plane += sharp - moving[3] * plane
        return torch.from_numpy(flow)[None], torch.from_numpy(residual)[None]

    def _coordinate_response(self, values: Tensor) -> np.ndarray:
        """Return the response of the first convolution ``[C h w]`` to map and drop of ``MouthWindows`` alone."""
        shares = torch.zeros(1, 1, WINDOW_HEIGHT, WINDOW_WIDTH)
        picture, skin = shares.expand(1, 3, -1, -1), torch.ones(1, 3)
        place, drop = values[:6].reshape(1, 2, 3), values[None, 6:]
        alone = MouthWindows(picture, picture, skin, shares, shares, shares, place, drop)
        planes = self._network.inputs(alone)
        planes[:, : _COORDINATES.start] = 0
        return self._network.stem(F.pixel_unshuffle(planes, 2)).numpy().ravel()

    def _portrait_response(self, windows: MouthWindows) -> np.ndarray:
        """Return the response ``[C h w]`` to the portrait's own window, computed once for each portrait."""
        skin, inner, response = self._portraits.get(windows.source, (None, None, None))
        if response is None or skin is not windows.skin or inner is not windows.source_inner:
            with torch.inference_mode():
                planes = self._network.inputs(windows)
                planes[:, _MOVING] = 0
                planes[:, _COORDINATES] = 0
                response = self._network.stem(F.pixel_unshuffle(planes, 2)).numpy().ravel()
            self._portraits[windows.source] = windows.skin, windows.source_inner, response
        return response


def example_windows() -> MouthWindows:
    """Return one window of random values, as an example of the shapes."""
    window, plane = (3, WINDOW_HEIGHT, WINDOW_WIDTH), (1, WINDOW_HEIGHT, WINDOW_WIDTH)
    return MouthWindows(*(torch.rand(1, *shape) for shape in (window, window, (3,), plane, plane, plane, (2, 3), (2,))))


def export_onnx(network: RetouchNet, path: Path) -> None:
    """Write the core of ``network``, as ``OnnxRetouchNet`` runs it, atomically as ONNX."""
    partial = path.with_suffix(".partial")
    half = (WINDOW_HEIGHT // 2, WINDOW_WIDTH // 2)
    example = torch.rand(1, 4 * len(_MOVING), *half), torch.rand(1, network.stem.out_channels, *half)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Core(network.eval()), example, str(partial), input_names=["moving", "stem"],
            output_names=["flow", "residual"], opset_version=17, dynamo=False,
        )  # fmt: skip
    os.replace(partial, path)


class _Core(nn.Module):
    """``RetouchNet`` between the two rearrangements of pixels, which NumPy does faster than ONNX Runtime.

    The first convolution sees only the planes that differ freely between frames; the other input is its response to the
    others. The residual is not blurred yet.
    """

    kernel: Tensor
    fade: Tensor

    def __init__(self, network: RetouchNet) -> None:
        super().__init__()
        self.network = network
        channels = [4 * plane + part for plane in _MOVING for part in range(4)]
        self.register_buffer("kernel", network.stem.weight[:, channels].detach().clone())
        self.register_buffer("fade", F.pixel_unshuffle(network.fade.expand(1, 5, -1, -1), 2).clone())

    def forward(self, moving: Tensor, stem: Tensor) -> tuple[Tensor, Tensor]:
        """Return flow ``[1, 8, h, w]`` and residual ``[1, 12, h, w]``."""
        out = self.network.body(F.conv2d(moving, self.kernel, padding=1) + stem) * self.fade
        return _LARGEST_FLOW * torch.tanh(out[:, :8] / _LARGEST_FLOW), out[:, 8:]
