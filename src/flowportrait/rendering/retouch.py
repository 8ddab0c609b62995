"""Retouching: a small network that corrects mouth, lips and folds of a drawn face.

    frame ──cut to the mouth window──► network ──► flow, residual ──applied at the frame's own resolution──► frame
    out(x) = base(x + flow(x)) + skin · residual(x)

base is what the warp and the mouth model drew. The flow corrects the shape of lips and folds and keeps the photo's own
detail; the blurred residual adds the light of an open mouth. Colours are relative to the skin, so a painting or a grey
photo is retouched in its own palette. An untrained network changes nothing.

``RetouchNet`` is the network, ``OnnxRetouchNet`` the same as ONNX, and ``Retouch`` applies it to one portrait. Trained
and stored are the weights ``model.safetensors``; after training, export them again:

    python -m flowportrait.rendering.retouch        model.safetensors ─► model.onnx, both in weights/retouch
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from flowportrait.devices import Device, cached_per_device, device_of, onnx_providers, place_network, read_weights
from flowportrait.files import shipped_weights
from flowportrait.media.colour import LUMA_601
from flowportrait.rendering.face_regions import INNER_LOWER, INNER_UPPER, OUTER_LOWER, OUTER_UPPER
from flowportrait.rendering.mouth import PHOTO_OPENING, colourfulness
from flowportrait.rendering.mouth_geometry import (
    WINDOW_HEIGHT,
    WINDOW_WIDTH,
    MouthFrame,
    cut_mouth_window,
    mouth_state,
    mouth_window_transform,
    skin_colour,
)

# --- The network -----------------------------------------------------------------------------------------------------

_WIDTHS = (32, 64, 96)
_INPUTS = 13
"""Input planes; see ``RetouchNet.inputs``."""

_LARGEST_FLOW = 6.0
"""Largest flow in pixels of the window."""

_FADE = 10
"""Pixels over which the change fades to zero at the border of the window."""

_SOFTNESS, _REACH = 2.0, 5
"""Standard deviation and radius in pixels of the blur of the residual. Without the blur, a network this small paints
the average of all teeth in its training data, which resembles none."""

_DARKEST = 0.06
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


class ResidualBlock(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
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

    def __init__(self, widths: tuple[int, ...] = _WIDTHS) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4 * _INPUTS, widths[0], 3, padding=1)
        self.encoders = nn.ModuleList(
            nn.Sequential(*[ResidualBlock(w) for _ in range(1 + (w > widths[0]))]) for w in widths
        )
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.decoders = nn.ModuleList(ResidualBlock(a) for a, _ in pairwise(widths))
        self.head = nn.Conv2d(widths[0], 4 * 5, 3, padding=1)
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.zero_()
        ys, xs = torch.meshgrid(torch.arange(WINDOW_HEIGHT), torch.arange(WINDOW_WIDTH), indexing="ij")
        self.register_buffer("fade", _border_fade(), persistent=False)
        taps = torch.exp(-0.5 * (torch.arange(-_REACH, _REACH + 1) / _SOFTNESS) ** 2)
        self.register_buffer("taps", taps / taps.sum(), persistent=False)
        self.register_buffer("grid", torch.stack([xs, ys, torch.ones_like(xs)]).float(), persistent=False)

    def inputs(self, windows: MouthWindows) -> Tensor:
        """Return the input planes ``[B, 13, H, W]`` of the network.

        They are two pictures relative to the skin (6), three shares (3), the coordinates u, s and j (3), and the
        opening (1).
        """
        skin = windows.skin.clamp_min(_DARKEST)[..., None, None]
        place = torch.einsum("bij,jhw->bihw", windows.place, self.grid)
        drop = windows.drop[..., None, None].expand(-1, -1, *place.shape[2:])
        jaw = place[:, 1:] - drop[:, :1]
        pictures = [(windows.base / skin - 1).clamp(max=2), (windows.source / skin - 1).clamp(max=2)]
        shares = [windows.inner, windows.outer, windows.source_inner]
        return torch.cat([*pictures, *shares, 2 * place[:, :1], 4 * place[:, 1:], 4 * jaw, 4 * drop[:, 1:]], 1)

    def forward(self, windows: MouthWindows) -> tuple[Tensor, Tensor]:
        """Return flow and residual."""
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
        return _LARGEST_FLOW * torch.tanh(out[:, :2] / _LARGEST_FLOW), self._blur(out[:, 2:])

    def _blur(self, residual: Tensor) -> Tensor:
        """Return the blurred residual: it carries light and colour, while edges remain those that were drawn."""
        taps = self.taps.expand(3, 1, 1, -1)
        across = F.conv2d(F.pad(residual, (_REACH, _REACH, 0, 0)), taps, groups=3)
        return F.conv2d(F.pad(across, (0, 0, _REACH, _REACH)), taps.transpose(2, 3), groups=3)

    def retouched(self, windows: MouthWindows) -> tuple[Tensor, Tensor]:
        """Return the retouched windows ``[B, 3, H, W]`` and the flow, differentiably."""
        flow, residual = self(windows)
        place = (self.grid[:2] + flow).permute(0, 2, 3, 1)
        last = torch.tensor([WINDOW_WIDTH - 1, WINDOW_HEIGHT - 1], dtype=place.dtype)
        moved = F.grid_sample(windows.base, 2 * place / last - 1, align_corners=True, padding_mode="border")
        return moved + windows.skin.clamp_min(_DARKEST)[..., None, None] * residual, flow


# --- The network as ONNX ---------------------------------------------------------------------------------------------
#
# ONNX Runtime runs the same weights in two thirds of the time: the window is so small that much of PyTorch's time is
# spent between the convolutions, which the runtime fuses.


class OnnxRetouchNet:
    """``RetouchNet`` from an ONNX file, for one window at a time; it can be called from several threads at once."""

    def __init__(self, path: Path, device: Device | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # frames are drawn in parallel; threads within one would only wait
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=onnx_providers(device))

    def __call__(self, windows: MouthWindows) -> tuple[Tensor, Tensor]:
        """Return flow and residual; see ``RetouchNet``."""
        feed = {name: tensor.numpy() for name, tensor in windows._asdict().items()}
        flow, residual = self._session.run(None, feed)
        return torch.from_numpy(flow), torch.from_numpy(residual)


def example_windows() -> MouthWindows:
    """Return one window of random values, as an example of the shapes."""
    picture, share = torch.rand(1, 3, WINDOW_HEIGHT, WINDOW_WIDTH), torch.rand(1, 1, WINDOW_HEIGHT, WINDOW_WIDTH)
    return MouthWindows(picture, picture.clone(), torch.rand(1, 3), share, share.clone(), share.clone(), torch.rand(1,
        2, 3),
                   torch.rand(1, 2))  # fmt: skip


def export_onnx(network: RetouchNet, path: Path) -> None:
    """Write ``network`` atomically as ONNX."""
    partial = path.with_suffix(".partial")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Positional(network.eval()), tuple(example_windows()), str(partial), input_names=list(MouthWindows._fields),
            output_names=["flow", "residual"], opset_version=17, dynamo=False,
        )  # fmt: skip
    os.replace(partial, path)


class _Positional(nn.Module):
    """``RetouchNet`` with positional tensors, as the exporter passes them instead of a named tuple."""

    def __init__(self, network: RetouchNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, *windows: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(MouthWindows(*windows))


# --- Retouching of one portrait --------------------------------------------------------------------------------------

RetouchFunction = Callable[[MouthWindows], tuple[torch.Tensor, torch.Tensor]]
"""``Windows -> (flow, residual)``, as ``RetouchNet`` returns them."""

_LIPS = [*INNER_UPPER, *INNER_LOWER, *OUTER_UPPER, *OUTER_LOWER]

_KNOWN_OPENING, _UNKNOWN_OPENING = 0.09, 0.17
"""Openings in eye distances between which the effect of the network fades out, as it was trained on few wider
mouths."""

_FULL_EFFECT = 2.0
"""Mean distance in window pixels from the photo's own lips at which the network has its full effect; the photo itself
needs none."""

_OWN = 0.8
"""Share of the residual that is suppressed on teeth that the photo shows."""

_LUMA = LUMA_601.astype(np.float32)


@cached_per_device
def shipped_retouch_network() -> RetouchFunction:
    """Return the network that comes with the package, run by ONNX Runtime."""
    return OnnxRetouchNet(shipped_weights("retouch/model.onnx"))


@cached_per_device
def _torch_network() -> RetouchFunction:
    """Return the shipped network in PyTorch, for devices that the installed ONNX Runtime does not support."""
    network = RetouchNet().requires_grad_(False).eval()
    network.load_state_dict(read_weights(shipped_weights("retouch/model.safetensors")))
    device = device_of(place_network(network))

    def retouch(windows: MouthWindows) -> tuple[torch.Tensor, torch.Tensor]:
        flow, residual = network(MouthWindows(*(part.to(device) for part in windows)))
        return flow.cpu(), residual.cpu()

    return retouch


def retouch_network(device: Device = "cpu", dtype: torch.dtype = torch.float32) -> RetouchFunction:
    """Return the shipped network on a device.

    ONNX Runtime runs it where it supports the device and type, which is faster; otherwise PyTorch does.
    """
    supported = torch.device(device).type == "cpu" or len(onnx_providers(device)) > 1
    if supported and dtype == torch.float32:
        return shipped_retouch_network(device=device)
    return _torch_network(device=device, dtype=dtype)


class Retouch:
    """Retouches frames that were drawn from one portrait.

    Args:
        crop: the portrait crop ``[S, S, 3]`` uint8.
        landmarks: its landmarks ``[478, 3]`` px.
        network: the network; by default the shipped one.
        keep_photo_interior: whether the frames show the crop's own mouth interior where that is open.
        skin: skin colour ``[3]``; by default measured in the crop.
    """

    def __init__(
        self,
        crop: np.ndarray,
        landmarks: np.ndarray,
        network: RetouchFunction | None = None,
        keep_photo_interior: bool = True,
        skin: np.ndarray | None = None,
    ) -> None:
        self._network = network or shipped_retouch_network()
        self._frame = MouthFrame(landmarks)
        skin = skin_colour(crop, landmarks) if skin is None else skin
        self._skin = (skin / 255).astype(np.float32)
        self._colourful = colourfulness(skin)
        start = mouth_window_transform(landmarks)
        self._source = _picture(cut_mouth_window(crop, start))
        self._photo_lips = _lips(landmarks, start)
        photo_state = mouth_state(self._frame, landmarks, start)
        self._source_inner = _plane(photo_state.inner)
        self._photo_shows_teeth = keep_photo_interior and photo_state.height > PHOTO_OPENING

    def draw(self, frame: np.ndarray, target: np.ndarray, source: np.ndarray | None = None) -> None:
        """Retouch a frame in place.

        Args:
            frame: ``[S, S, 3]`` uint8.
            target: the landmarks ``[478, 3]`` px for which it was drawn.
            source: landmarks of the picture from which it was drawn; by default those of the portrait.
        """
        matrix = mouth_window_transform(target)
        photo_lips = self._photo_lips if source is None else _lips(source, mouth_window_transform(source))
        state = mouth_state(self._frame, target, matrix)
        trained = min(max((_UNKNOWN_OPENING - state.height) / (_UNKNOWN_OPENING - _KNOWN_OPENING), 0.0), 1.0)
        moved = float(np.linalg.norm(_lips(target, matrix) - photo_lips, axis=1).mean())
        strength = np.float32(trained * min(moved / _FULL_EFFECT, 1.0))
        if strength == 0:
            return
        windows = MouthWindows(
            base=_picture(cut_mouth_window(frame, matrix)),
            source=self._source,
            skin=torch.from_numpy(self._skin)[None],
            inner=_plane(state.inner),
            outer=_plane(state.outer),
            source_inner=self._source_inner,
            place=torch.from_numpy(state.place)[None],
            drop=torch.tensor([[state.jaw, state.height]], dtype=torch.float32),
        )
        with torch.inference_mode():
            flow, residual = (strength * change[0].permute(1, 2, 0).numpy() for change in self._network(windows))
        if self._photo_shows_teeth:
            # Teeth that the photo shows keep their own brightness.
            residual = residual * (1 - _OWN * cv2.GaussianBlur(state.inner, (0, 0), 2.0))[..., None]
        self._apply(frame, matrix, flow, self._to_colours(residual))

    def _to_colours(self, residual: np.ndarray) -> np.ndarray:
        """Return the residual in 8-bit colours; a grey portrait stays grey."""
        colour = residual * (255 * np.maximum(self._skin, 0.06))
        grey = (colour @ _LUMA)[..., None]
        return grey + self._colourful * (colour - grey)

    @staticmethod
    def _apply(frame: np.ndarray, matrix: np.ndarray, flow: np.ndarray, residual: np.ndarray) -> None:
        """Apply flow and residual to the part of ``frame`` under the window, in place."""
        back = cv2.invertAffineTransform(matrix)
        corners = (
            np.array([[0, 0, 1], [WINDOW_WIDTH, 0, 1], [0, WINDOW_HEIGHT, 1], [WINDOW_WIDTH, WINDOW_HEIGHT, 1]])
            @ back.T
        )
        size = frame.shape[0]
        low = np.floor(corners.min(0)).astype(int).clip(0, size)
        high = np.ceil(corners.max(0)).astype(int).clip(0, size)
        width, height = (high - low).tolist()
        if width < 2 or height < 2:
            return
        local = matrix.copy()
        local[:, 2] += matrix[:, :2] @ low
        shape = (width, height)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        moved = cv2.warpAffine(np.ascontiguousarray(flow), local, shape, flags=flags)
        painted = cv2.warpAffine(np.ascontiguousarray(residual), local, shape, flags=flags)
        place = cv2.transform(moved, back[:, :2])
        place[..., 0] += np.arange(low[0], high[0], dtype=np.float32)
        place[..., 1] += np.arange(low[1], high[1], dtype=np.float32)[:, None]
        drawn = cv2.remap(frame, place, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        mixed = np.round(drawn + painted).clip(0, 255).astype(np.uint8)
        frame[low[1] : high[1], low[0] : high[0]] = mixed


def _lips(landmarks: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the lip landmarks ``[44, 2]`` in the window."""
    return landmarks[_LIPS, :2] @ matrix[:, :2].T + matrix[:, 2]


def _picture(window: np.ndarray) -> torch.Tensor:
    """Return a window ``[H, W, 3]`` uint8 as ``[1, 3, H, W]`` in [0, 1]."""
    return torch.from_numpy(window).permute(2, 0, 1)[None].float() / 255


def _plane(share: np.ndarray) -> torch.Tensor:
    """Return shares ``[H, W]`` as ``[1, 1, H, W]``."""
    return torch.from_numpy(share)[None, None]


if __name__ == "__main__":
    trained = RetouchNet()
    trained.load_state_dict(load_file(str(shipped_weights("retouch/model.safetensors"))))
    export_onnx(trained, shipped_weights("retouch/model.onnx"))
